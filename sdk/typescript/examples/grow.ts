/**
 * Memory is given when it is needed, and given back.
 *
 *     node grow.js IMAGE [MORE_MB]
 */

import { Sandbox } from 'spore-sdk';

await using sandbox = await Sandbox.create({ image: process.argv[2] ?? 'debian-tools' });
const { floorMB, maxMB } = sandbox.memory;
console.log(`from ${floorMB} to ${maxMB} MiB`);

const total = async (): Promise<number> => {
  const { stdout } = await sandbox.exec("awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo", {
    check: true,
  });
  return Number(stdout);
};

const before = await total();
await sandbox.resize(floorMB + Number(process.argv[3] ?? 1024));
const after = await total();
console.log(`the guest has ${after - before} MiB more`);

await sandbox.resize(floorMB);
const { pluggedBytes } = await sandbox.usage();
console.log(`${pluggedBytes} bytes are plugged beyond the floor`);
