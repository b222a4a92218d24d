import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';

import { Image } from '../src/index.js';
import { matches } from '../src/glob.js';
import { temporary } from './support/fake.js';

test('the words of an image become a manifest', () => {
  const image = Image.base()
    .aptInstall(['build-essential', 'cmake'], 'git')
    .pipInstall('requests', ['uvicorn[standard]>=0.30,<1'])
    .runCommands('make -j', 'make install')
    .env({ CC: 'clang', EMPTY: '' })
    .workdir('/app')
    .addText('hi\n', '/etc/motd')
    .addFile(Buffer.from([0, 255]), '/bin/tool', { mode: 0o755 })
    .addFile(Buffer.alloc(0), '/empty', { mode: '600' })
    .builderMemory(8192)
    .name('app')
    .disk(16384);
  assert.deepEqual(image.manifest(), {
    base: 'debian',
    steps: [
      { type: 'apt_install', args: { packages: ['build-essential', 'cmake', 'git'] } },
      { type: 'pip_install', args: { packages: ['requests', 'uvicorn[standard]>=0.30,<1'] } },
      { type: 'run', args: { commands: ['make -j', 'make install'] } },
      { type: 'env', args: { vars: { CC: 'clang', EMPTY: '' } } },
      { type: 'workdir', args: { path: '/app' } },
      { type: 'add_file', args: { path: '/etc/motd', content: 'aGkK' } },
      { type: 'add_file', args: { path: '/bin/tool', content: 'AP8=', mode: '0755' } },
      { type: 'add_file', args: { path: '/empty', content: '', mode: '600' } },
    ],
    builderMemoryMB: 8192,
    name: 'app',
    diskMB: 16384,
  });
  assert.equal(JSON.stringify(image), JSON.stringify(image.manifest()));
});

test('an image never changes', () => {
  const one = Image.base('busybox');
  const other = one.runCommands('true');
  assert.deepEqual(one.manifest(), { base: 'busybox', steps: [] });
  assert.equal(other.manifest().steps.length, 1);
  other.manifest().steps.pop();
  const variables = { A: '1' };
  const third = other.env(variables);
  variables.A = '2';
  assert.deepEqual(third.manifest().steps[1]?.args, { vars: { A: '1' } });
  assert.equal(third.manifest().steps.length, 2);
});

test('name, memory and disk are not in the hash; steps, their order and the base are', () => {
  const image = Image.base('busybox').runCommands('a').runCommands('b');
  const same = [image, image.name('x').builderMemory(512).disk(4096), Image.fromManifest(image.manifest())];
  assert.equal(new Set(same.map((one) => one.contentHash())).size, 1);
  const different = [
    image,
    Image.base('busybox').runCommands('b').runCommands('a'),
    Image.base('busybox').runCommands('a', 'b'),
    Image.base('debian').runCommands('a').runCommands('b'),
  ];
  assert.equal(new Set(different.map((one) => one.contentHash())).size, 4);
  assert.equal(
    Image.base('busybox').runCommands('echo hello').contentHash(),
    '918f8461dfef9126ee80eeb199de7d1b8f1ad6dc09db2e17944a0e216412ec94', // "one command" of the vectors.
  );
});

test('a manifest may say more than the methods, and steps go on after it', () => {
  const image = Image.fromManifest({ base: 'busybox', steps: [], runtimeMemoryMB: 2048 }).workdir('/a');
  assert.deepEqual(image.manifest(), {
    base: 'busybox',
    steps: [{ type: 'workdir', args: { path: '/a' } }],
    runtimeMemoryMB: 2048,
  });
});

test('what cannot be meant is refused here', () => {
  const wrong: (() => unknown)[] = [
    () => Image.fromManifest({ base: 'x' } as never),
    () => Image.fromManifest({ steps: [] } as never),
    () => Image.base(1 as never),
    () => Image.base().aptInstall([1 as never]),
    () => Image.base().env({ A: 1 as never }),
    () => Image.base().workdir('app'),
    () => Image.base().addText('x', 'etc/motd'),
    () => Image.base().addText(1 as never, '/x'),
    () => Image.base().builderMemory('8192' as never),
    () => Image.base().builderMemory(0.5),
    () => Image.base().disk(NaN),
    () => Image.base().addLocalDir('.', '/x', { ignore: '*.pyc' as never }),
  ];
  for (const make of wrong) assert.throws(make, TypeError, make.toString());
  assert.throws(() => Image.base().addFile(Buffer.alloc(1), '/x', { mode: 0o10000 }), RangeError);
});

test('a local directory is the same image wherever it is checked out', (t) => {
  const root = temporary(t);
  const write = (file: string, content: string, mode: number): void => {
    mkdirSync(path.dirname(path.join(root, file)), { recursive: true });
    writeFileSync(path.join(root, file), content);
    chmodSync(path.join(root, file), mode);
  };
  write('run.sh', 'x', 0o700);
  write('lib/b.txt', 'b', 0o600);
  write('lib/a.txt', 'a', 0o664);
  write('lib-x', '', 0o644);
  write('\u{1f600}', 'astral', 0o644);
  write('\ufb33', 'plane 0', 0o644);
  write('.git/HEAD', 'no', 0o644);
  write('lib/__pycache__/a.pyc', 'no', 0o644);
  mkdirSync(path.join(root, 'empty'));
  symlinkSync('run.sh', path.join(root, 'link'));
  const image = Image.base().addLocalDir(root, '/app', { ignore: ['.git', '*.pyc'] });
  assert.deepEqual(image.manifest().steps[0], {
    type: 'add_dir',
    args: {
      path: '/app',
      files: [
        { relativePath: 'lib-x', content: '' },
        { relativePath: 'lib/a.txt', content: 'YQ==' },
        { relativePath: 'lib/b.txt', content: 'Yg==' },
        { relativePath: 'link', content: 'eA==', mode: '0755' },
        { relativePath: 'run.sh', content: 'eA==', mode: '0755' },
        { relativePath: '\ufb33', content: Buffer.from('plane 0').toString('base64') },
        { relativePath: '\u{1f600}', content: Buffer.from('astral').toString('base64') },
      ],
    },
  });
  const file = Image.base().addFile(path.join(root, 'run.sh'), '/run.sh').manifest();
  assert.deepEqual(file.steps[0]?.args, { path: '/run.sh', content: 'eA==', mode: '0755' });
});

test('what cannot be in an image is named', (t) => {
  const root = temporary(t);
  symlinkSync('.', path.join(root, 'loop'));
  assert.throws(() => Image.base().addLocalDir(root, '/x'), /loop is a link to a directory/);
  assert.doesNotThrow(() => Image.base().addLocalDir(root, '/x', { ignore: ['loop'] }));
  assert.throws(() => Image.base().addLocalDir(path.join(root, 'none'), '/x'), { code: 'ENOENT' });
  assert.throws(() => Image.base().addFile('/dev/null', '/x'), /no regular file/);
  const huge = path.join(root, 'huge');
  writeFileSync(huge, '');
  truncateSync(huge, 48 * 1024 * 1024 + 1);
  assert.throws(() => Image.base().addFile(huge, '/x'), RangeError);
});

test('patterns match as fnmatch does', () => {
  const cases: [string, string, boolean][] = [
    ['a.pyc', '*.pyc', true],
    ['lib/a.pyc', '*.pyc', true],
    ['a.py', '*.pyc', false],
    ['.git', '.git', true],
    ['xgit', '.git', false],
    ['a\nb', 'a?b', true],
    ['\u{1f600}', '?', true],
    ['b', '[abc]', true],
    ['b', '[!abc]', false],
    ['d', '[!a-c]', true],
    ['b', '[a-c]', true],
    [']', '[]]', true],
    ['-', '[a-]', true],
    ['b', '[a-]', false],
    ['^', '[^]', true],
    ['\\', '[\\]', true],
    ['a', '[c-a]', false],
    ['[a', '[a', true],
    ['a+b(c)', 'a+b(c)', true],
    ['aab(c)', 'a+b(c)', false],
    ['', '*', true],
    ['', '?', false],
  ];
  for (const [text, pattern, expected] of cases)
    assert.equal(matches(text, pattern), expected, `${text} ${pattern}`);
});
