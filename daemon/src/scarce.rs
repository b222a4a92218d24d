//! What of the host has run out.

use std::error::Error;

use rustix::io::Errno;
use spore_vmm::process::errno_in;

/// Which resource it was, if an error came of the want of one: `descriptors`, `memory`, `disk` or `processes`.
pub fn resource(error: &(dyn Error + 'static)) -> Option<&'static str> {
    match errno_in(error)? {
        Errno::MFILE | Errno::NFILE => Some("descriptors"),
        Errno::NOMEM => Some("memory"),
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Some("disk"),
        // Of fork(2) and pthread_create(3): no more of them.
        Errno::AGAIN => Some("processes"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spore_snapshot::store::StoreError;

    #[test]
    fn it_is_found_below_what_it_led_to() {
        let error = |errno: Errno| StoreError::Io {
            action: "create",
            path: "/x".into(),
            source: errno.into(),
        };
        assert_eq!(resource(&error(Errno::MFILE)), Some("descriptors"));
        assert_eq!(resource(&error(Errno::NOSPC)), Some("disk"));
        assert_eq!(resource(&std::io::Error::from(Errno::NOMEM)), Some("memory"));
        assert_eq!(resource(&error(Errno::ACCESS)), None);
    }
}
