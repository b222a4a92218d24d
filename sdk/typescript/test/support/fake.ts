/**
 * A daemon's place: an HTTP server on a Unix socket that answers what a test tells it to.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import * as http from 'node:http';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { TestContext } from 'node:test';

import { Client } from '../../src/index.js';

/** A request as it came. */
export interface Seen {
  method: string;
  /** Path without the query. */
  path: string;
  query: URLSearchParams;
  headers: http.IncomingHttpHeaders;
  body: Buffer;
  /** The body, if it is JSON. */
  json: unknown;
}

/** Answers a request; what is thrown fails it with a 500. */
export type Handler = (
  request: Seen,
  response: http.ServerResponse,
  incoming: http.IncomingMessage,
) => void | Promise<void>;

/** What a {@link fakeDaemon} is. */
export interface FakeDaemon {
  server: http.Server;
  socketPath: string;
  client: Client;
  /** All requests, in order. */
  seen: Seen[];
  /** How many connections were opened. */
  connections: () => number;
}

/** Starts one that lasts as long as the test. */
export async function fakeDaemon(t: TestContext, handler: Handler): Promise<FakeDaemon> {
  const directory = temporary(t);
  const socketPath = path.join(directory, 's');
  const seen: Seen[] = [];
  const sockets = new Set<Socket>();
  let connections = 0;
  const server = http.createServer((incoming, response) => {
    answer(incoming, response, handler, seen).catch((error: unknown) => {
      if (!response.headersSent) json(response, 500, { error: { code: 'internal', message: String(error) } });
      else response.destroy();
    });
  });
  server.on('connection', (socket) => {
    connections += 1;
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
  });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  const client = new Client({ socketPath });
  t.after(async () => {
    client.close();
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  });
  return { server, socketPath, client, seen, connections: () => connections };
}

/** A directory that lasts as long as the test. */
export function temporary(t: TestContext): string {
  const directory = mkdtempSync(path.join(tmpdir(), 'spore-sdk-'));
  t.after(() => {
    rmSync(directory, { recursive: true, force: true });
  });
  return directory;
}

/** Answers with JSON. */
export function json(response: http.ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
}

/** Answers with an error of the API. */
export function fail(response: http.ServerResponse, status: number, code: string, message = code): void {
  json(response, status, { error: { code, message } });
}

/** A sandbox as the daemon tells of it. */
export function sandboxInfo(id: string, more: object = {}): object {
  return {
    id,
    state: 'running',
    image: 'img',
    origin: 'shell',
    memory: { floorMB: 256, requestedMB: 512, grantedMB: 512, maxMB: 16384 },
    cpus: 1,
    network: { policy: 'none' },
    metadata: {},
    createdAt: 1_700_000_000,
    lastUsedAt: 1_700_000_000,
    times: { releasedUs: 1, wokeUs: 2, readyUs: 3 },
    ...more,
  };
}

/** An image as the daemon tells of it. */
export function imageInfo(id: string): object {
  return {
    id,
    names: ['app'],
    contentHash: 'c'.repeat(64),
    baseDigest: 'b'.repeat(64),
    createdAt: 1_700_000_000,
    sizeBytes: 4096,
    builderMemoryMB: 4096,
    checkpoints: [{ id: 'cp', floorMB: 1024, cpus: 1 }],
  };
}

/** How a command ended, as the daemon tells of it. */
export function execResult(stdout: string | Uint8Array, more: object = {}): object {
  return {
    exitCode: 0,
    timedOut: false,
    oomKills: 0,
    tookMs: 5,
    maxRssBytes: 1024,
    stdout: Buffer.from(stdout as string).toString('base64'),
    stderr: '',
    truncated: false,
    ...more,
  };
}

async function answer(
  incoming: http.IncomingMessage,
  response: http.ServerResponse,
  handler: Handler,
  seen: Seen[],
): Promise<void> {
  const pieces: Buffer[] = [];
  for await (const piece of incoming) pieces.push(piece as Buffer);
  const body = Buffer.concat(pieces);
  const url = new URL(incoming.url ?? '', 'http://spore');
  const isJson = incoming.headers['content-type'] === 'application/json';
  const request: Seen = {
    method: incoming.method ?? '',
    path: url.pathname,
    query: url.searchParams,
    headers: incoming.headers,
    body,
    json: isJson ? JSON.parse(body.toString('utf8')) : undefined,
  };
  seen.push(request);
  await handler(request, response, incoming);
}
