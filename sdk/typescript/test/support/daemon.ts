/**
 * The real daemon that tests may use: SPORE_SOCKET is its socket, SPORE_TEST_IMAGE an image that it has.
 */

const socket = process.env['SPORE_SOCKET'] ?? '';

/** The image's name or id. */
export const image = process.env['SPORE_TEST_IMAGE'] ?? '';

/** The name of a base that an image may be built of, which takes a minute or two. */
export const base = process.env['SPORE_TEST_BASE'] ?? '';

/** Why nothing can be tested with a daemon, if so. */
export const noDaemon =
  socket === ''
    ? 'SKIPPED: SPORE_SOCKET names no daemon'
    : image === ''
      ? 'SKIPPED: SPORE_TEST_IMAGE names no image of the daemon'
      : false;

/** Why nothing can be built, if so. */
export const noBase =
  noDaemon !== false ? noDaemon : base === '' ? 'SKIPPED: SPORE_TEST_BASE names no base' : false;
