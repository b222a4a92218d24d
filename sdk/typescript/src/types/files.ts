/**
 * Files.
 *
 * @module
 */

/** What a name in a directory is. A symbolic link is not followed. */
export type EntryKind = 'file' | 'directory' | 'symlink' | 'other';

/** A name in a directory. */
export interface DirEntry {
  /** The name; bytes that are not UTF-8 are U+FFFD. */
  name: string;
  /** What it is. */
  kind: EntryKind;
  /** Size. */
  sizeBytes: number;
  /** Permission bits, as four octal digits. */
  mode: string;
  /** Last change of its contents. */
  modifiedAt: number;
}

/** A directory. */
export interface DirEntries {
  /** What is in it, sorted by name. */
  entries: DirEntry[];
}

/** What was written. */
export interface FileInfo {
  /** Where. */
  path: string;
  /** How much. */
  sizeBytes: number;
}
