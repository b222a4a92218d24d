/**
 * An image is built with much memory and run with little.
 *
 *     node build.js [BASE]
 */

import { BuildOomError, Image, Sandbox } from 'spore-sdk';

const image = Image.base(process.argv[2])
  .env({ APP: 'demo' })
  .workdir('/app')
  .addText('#!/bin/sh\necho "$APP runs in $(pwd)"\n', '/app/run', { mode: 0o755 })
  .runCommands('./run > /app/built')
  .builderMemory(1024)
  .name('spore-sdk-example');

console.log(`content hash ${image.contentHash()}`);
try {
  const built = await image.build({ onLog: console.error });
  await using sandbox = await Sandbox.create({ image: built.id });
  console.log((await sandbox.exec('cat built && ./run', { check: true })).stdout.trimEnd());
} catch (error) {
  if (error instanceof BuildOomError) console.error('more builderMemory is needed');
  throw error;
}
