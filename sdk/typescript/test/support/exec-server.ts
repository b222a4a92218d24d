/**
 * The daemon's end of command streams, by the package `ws`: an implementation that shares nothing with ours.
 */

import type { TestContext } from 'node:test';
import { WebSocketServer } from 'ws';
import type { WebSocket } from 'ws';

import type { ExecRequest } from '../../src/types.js';
import { Sandbox } from '../../src/index.js';
import { fail, fakeDaemon, sandboxInfo } from './fake.js';
import type { FakeDaemon } from './fake.js';

/** A stream that was opened. */
export interface Opened {
  socket: WebSocket;
  request: ExecRequest;
  /** Messages after the first, text as JSON. */
  said: unknown[];
  /** Resolves when there are so many. */
  saidSoMany: (count: number) => Promise<unknown[]>;
  /** Resolves when the other end has hung up. */
  closed: Promise<void>;
}

/** Starts a daemon whose commands are `run`, and gives a sandbox of it. */
export async function execDaemon(
  t: TestContext,
  run: (stream: Opened) => void | Promise<void>,
): Promise<{ daemon: FakeDaemon; sandbox: Sandbox; opened: Opened[] }> {
  const daemon = await fakeDaemon(t, (_, response) => {
    fail(response, 404, 'not_found');
  });
  const opened: Opened[] = [];
  const sockets = new WebSocketServer({ noServer: true });
  daemon.server.on('upgrade', (incoming, socket, head) => {
    if (incoming.url !== '/v1/sandboxes/sb/exec') {
      const body = '{"error":{"code":"not_found","message":"no such sandbox"}}';
      socket.end(`HTTP/1.1 404 Not Found\r\ncontent-length: ${body.length}\r\n\r\n${body}`);
      return;
    }
    sockets.handleUpgrade(incoming, socket, head, (webSocket) => {
      webSocket.on('error', () => undefined);
      const waiting: { count: number; resolve: (said: unknown[]) => void }[] = [];
      const said: unknown[] = [];
      webSocket.once('message', (first: Buffer) => {
        const stream: Opened = {
          socket: webSocket,
          request: JSON.parse(first.toString('utf8')) as ExecRequest,
          said,
          saidSoMany: (count) =>
            new Promise((resolve) => {
              if (said.length >= count) resolve(said);
              else waiting.push({ count, resolve });
            }),
          closed: new Promise((resolve) => webSocket.on('close', resolve)),
        };
        opened.push(stream);
        webSocket.on('message', (message: Buffer, isBinary) => {
          said.push(isBinary ? message : JSON.parse(message.toString('utf8')));
          for (const { count, resolve } of waiting) if (said.length >= count) resolve(said);
        });
        void run(stream);
      });
    });
  });
  t.after(() => {
    for (const socket of sockets.clients) socket.terminate();
  });
  return { daemon, sandbox: new Sandbox(daemon.client, sandboxInfo('sb') as never), opened };
}
