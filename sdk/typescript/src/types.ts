/**
 * What the daemon and its clients say to each other, name for name as in `api/types` of Spore's source.
 *
 * Sizes whose name ends in `MB` are MiB, all others are bytes. `…Ms` are milliseconds, `…Us` microseconds, `…At`
 * seconds since 1970-01-01 UTC. Answers may have fields that are not known here.
 *
 * @module
 */

export type * from './types/errors.js';
export type * from './types/images.js';
export type * from './types/sandboxes.js';
export type * from './types/commands.js';
export type * from './types/files.js';
export type * from './types/checkpoints.js';
export type * from './types/host.js';
export type * from './types/events.js';
