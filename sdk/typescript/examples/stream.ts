/**
 * Commands that are heard while they run, and talked with.
 *
 *     node stream.js IMAGE
 */

import { Sandbox } from 'spore-sdk';

await using sandbox = await Sandbox.create({ image: process.argv[2] ?? 'debian-tools' });

// Output as it comes.
const counting = await sandbox.execStream('for i in 1 2 3; do echo "line $i"; done; echo done >&2', {
  onStdout: (text) => process.stdout.write(text),
  onStderr: (text) => process.stdout.write(text),
});
await counting.wait();

// Input as it is wanted.
const shell = await sandbox.execStream(['/bin/sh']);
await shell.sendStdin('x=41\n');
await shell.sendStdin('echo $((x + 1))\n');
await shell.closeStdin();
for await (const { data } of shell) process.stdout.write(data);

// A command that does not end by itself.
const sleeping = await sandbox.execStream(['sleep', '1000']);
await sleeping.sendSignal('SIGTERM');
const { signal } = await sleeping.wait();
console.log(`ended by signal ${signal ?? 'none'}`);
