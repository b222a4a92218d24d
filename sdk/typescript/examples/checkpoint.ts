/**
 * A sandbox is kept as it is, and others begin where it was.
 *
 *     node checkpoint.js IMAGE
 */

import { Client, Sandbox } from 'spore-sdk';

const client = new Client();
await using sandbox = await Sandbox.create({ client, image: process.argv[2] ?? 'debian-tools' });
// In memory: it is not in the image, nor on the disk.
await sandbox.exec('mkdir -p /dev/shm; echo "kept in memory" > /dev/shm/note', { check: true });

const checkpoint = await sandbox.checkpoint({ name: `example-${sandbox.id}` });
try {
  console.log(`${checkpoint.floorMB} MiB is the least that a sandbox of it has`);
  await using later = await Sandbox.fromCheckpoint(checkpoint, { client });
  console.log((await later.files.readText('/dev/shm/note')).trimEnd());
} finally {
  await client.deleteCheckpoint(checkpoint.id);
}
