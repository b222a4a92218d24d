/**
 * What the daemon says in a command's stream.
 */

/** Output of a command as a message. */
export function output(channel: 1 | 2, text: string | Uint8Array): Buffer {
  return Buffer.concat([Buffer.from([channel]), Buffer.from(text as string)]);
}

/** The last message of a command that has ended. */
export function exit(more: object = {}): string {
  return JSON.stringify({
    type: 'exit',
    exitCode: 0,
    timedOut: false,
    oomKills: 0,
    tookMs: 5,
    maxRssBytes: 1024,
    stdout: '',
    stderr: '',
    truncated: false,
    ...more,
  });
}
