//! What of the host has run out.

use std::error::Error;
use std::io;

use rustix::io::Errno;

/// Which resource it was, if an error came of the want of one: `descriptors`, `memory` or `disk`.
pub fn resource(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        let errno = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
            .map(Errno::from_raw_os_error)
            .or_else(|| error.downcast_ref::<Errno>().copied());
        match errno {
            Some(Errno::MFILE | Errno::NFILE) => return Some("descriptors"),
            Some(Errno::NOMEM) => return Some("memory"),
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => return Some("disk"),
            _ => next = error.source(),
        }
    }
    None
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
        assert_eq!(resource(&io::Error::from(Errno::NOMEM)), Some("memory"));
        assert_eq!(resource(&error(Errno::ACCESS)), None);
    }
}
