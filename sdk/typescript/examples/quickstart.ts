/**
 * A sandbox, a command and a file.
 *
 *     node quickstart.js IMAGE
 */

import { Sandbox } from 'spore-sdk';

const image = process.argv[2] ?? 'debian-tools';

// Ended when the scope is left, whatever happens in it.
await using sandbox = await Sandbox.create({ image, env: { GREETING: 'hello' }, timeoutSeconds: 600 });
console.log(`${sandbox.id} was ready in ${sandbox.info.times.readyUs / 1000} ms`);

const { stdout } = await sandbox.exec('echo "$GREETING from $(uname -s)"', { check: true });
console.log(stdout.trimEnd());

await sandbox.files.write('/tmp/numbers', '3\n1\n2\n');
const sorted = await sandbox.exec(['sort', '/tmp/numbers'], { check: true });
console.log(sorted.stdout.split('\n').join(' ').trimEnd());
