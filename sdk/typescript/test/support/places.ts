/**
 * Where things are that are not in this package: it may have been copied to be built, so the repository is named by
 * SPORE_REPOSITORY there.
 */

import path from 'node:path';
import { fileURLToPath } from 'node:url';

/** This package's own directory; the tests run in `build/test`. */
export const packageRoot = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../../..');

const repository = process.env['SPORE_REPOSITORY'] ?? path.resolve(packageRoot, '../..');

/** The content hash vectors shared with Rust and Python. */
export function vectorsFile(): string {
  return path.join(repository, 'builder/tests/vectors/content-hash.json');
}
