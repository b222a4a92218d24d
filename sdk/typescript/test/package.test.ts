import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';

import * as sdk from '../src/index.js';
import { temporary } from './support/fake.js';
import { packageRoot } from './support/places.js';

const run = promisify(execFile);
const limit = { timeout: 120_000 };

// What is published, as somebody finds it who installs it.
test('the package can be installed, imported, and compiled against without leniency', limit, async (t) => {
  const project = temporary(t);
  const pack = ['pack', '--json', '--ignore-scripts', '--pack-destination', project];
  const packed = await run('npm', pack, { cwd: packageRoot });
  const [info] = JSON.parse(packed.stdout) as { filename: string; files: { path: string }[] }[];
  assert.ok(info !== undefined);
  const names = info.files.map((file) => file.path);
  for (const name of ['LICENSE', 'README.md', 'dist/index.js', 'dist/index.d.ts', 'src/index.ts']) {
    assert.ok(names.includes(name), name);
  }
  const unwanted = names.filter(
    (name) => !/^(LICENSE|README\.md|package\.json|(dist|src)(\/types)?\/[\w.-]+)$/.test(name),
  );
  assert.deepEqual(unwanted, []);

  const modules = path.join(project, 'node_modules');
  mkdirSync(path.join(modules, 'spore-sdk'), { recursive: true });
  const archive = path.join(project, path.basename(info.filename));
  await run('tar', ['-xf', archive, '--strip-components=1', '-C', path.join(modules, 'spore-sdk')]);
  symlinkSync(path.join(packageRoot, 'node_modules/@types'), path.join(modules, '@types'));

  const program = `import * as sdk from 'spore-sdk'; console.log(Object.keys(sdk).sort().join());`;
  writeFileSync(path.join(project, 'names.mjs'), program);
  const { stdout } = await run(process.execPath, ['names.mjs'], { cwd: project });
  assert.equal(stdout.trim(), Object.keys(sdk).sort().join());

  const consumer = `
    import { Client, Image, NotFoundError, Sandbox, SporeError } from 'spore-sdk';
    import type { ExecResult, HostInfo, ImageInfo, SandboxInfo } from 'spore-sdk';

    export async function work(): Promise<number> {
      const client = new Client({ socketPath: '/run/spore/spore.sock' });
      const image = Image.base().aptInstall(['curl']).runCommands('make -j').builderMemory(8192);
      const built: ImageInfo = await image.build({ client, onLog: (line: string) => line.length });
      const sandbox = await Sandbox.create({ image: built, memoryMB: 4096, network: { allow: ['example.com'] } });
      const info: Readonly<SandboxInfo> = sandbox.info;
      const { stdout, exitCode }: ExecResult = await sandbox.exec('ls -l', { check: true });
      const host: HostInfo = await client.host();
      for await (const event of client.events()) if (event.type === 'sandboxResized') return event.grantedMB;
      try {
        await Sandbox.create({ image: 'app' });
      } catch (error) {
        if (error instanceof NotFoundError || (error instanceof SporeError && error.code === 'new_code')) return 1;
      }
      // @ts-expect-error: an image is needed.
      await Sandbox.create({ memoryMB: 1 });
      // @ts-expect-error: the unit is in the name.
      await Sandbox.create({ image, memory: 1 });
      // @ts-expect-error: no such network.
      await Sandbox.create({ image, network: 'all' });
      // @ts-expect-error: the daemon's own business.
      void client.transport;
      await sandbox[Symbol.asyncDispose]();
      return exitCode + stdout.length + host.cpus + info.cpus;
    }`;
  writeFileSync(path.join(project, 'consumer.ts'), consumer);
  const options = ['--noEmit', '--strict', '--exactOptionalPropertyTypes', '--target', 'ES2022'];
  const compiler = path.join(packageRoot, 'node_modules/typescript/bin/tsc');
  const resolution = ['--module', 'NodeNext', '--moduleResolution', 'NodeNext', '--types', 'node'];
  writeFileSync(path.join(project, 'package.json'), '{"type":"module"}');
  await run(process.execPath, [compiler, ...options, ...resolution, 'consumer.ts'], { cwd: project }).catch(
    (error: unknown) => {
      assert.fail((error as { stdout: string }).stdout);
    },
  );
});
