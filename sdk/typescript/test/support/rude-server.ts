/**
 * A server that answers a request's head and soon hangs up, with all that came after the head unread. It runs in a
 * thread of its own (node:worker_threads), so that it can do so while the client is busy.
 */

import { createHash } from 'node:crypto';
import { createServer } from 'node:net';
import { parentPort, workerData } from 'node:worker_threads';

import { exit } from './exec-messages.js';

const HANG_UP_MS = 10;

const refusal = '{"error":{"code":"guest_refused","message":"no space left"}}';
const report = Buffer.from(exit({ exitCode: 7 })); // Of 126 bytes and more, and less than 65536.
const last = {
  stream: Buffer.concat([Buffer.from([0x81, 126, 0, report.length]), report, Buffer.from([0x88, 0])]),
  file: `HTTP/1.1 422 Unprocessable\r\nconnection: close\r\ncontent-length: ${refusal.length}\r\n\r\n${refusal}`,
};

const server = createServer((socket) => {
  socket.on('error', () => undefined);
  socket.once('data', (bytes) => {
    socket.pause();
    const head = bytes.toString('latin1');
    const key = /sec-websocket-key: (\S+)/i.exec(head)?.[1];
    if (key === undefined) socket.write('HTTP/1.1 100 Continue\r\n\r\n');
    else {
      const accept = createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
      const upgrade = 'HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n';
      socket.write(`${upgrade}sec-websocket-accept: ${accept}\r\n\r\n`);
    }
    setTimeout(() => {
      socket.write(key === undefined ? last.file : last.stream);
      socket.destroySoon();
    }, HANG_UP_MS);
  });
});
server.listen(workerData as string, () => parentPort?.postMessage('listening'));
