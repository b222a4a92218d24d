//! The host memory behind the blocks.

use super::BlockRange;

/// The host could not make memory appear or disappear; nothing has changed.
///
/// The guest is told "busy", and its driver asks again later.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl BackendError {
    /// An error with its cause.
    pub fn new(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(cause.into())
    }
}

/// Gives blocks host memory and takes it away again.
///
/// The device calls it only with ranges it has checked: inside the region, wholly unplugged for
/// [`plug`](Self::plug), wholly plugged for [`unplug`](Self::unplug). It answers the guest only
/// after the call has returned.
pub trait MemBackend: Send {
    /// Makes `range` ordinary guest memory. Its content is up to the backend, as long as nothing
    /// of another guest, of the host or of a checkpoint shows through.
    ///
    /// # Errors
    /// The host has no memory (or no memslot) left. Nothing of `range` is there, then: the device
    /// goes on treating all of it as unplugged.
    fn plug(&mut self, range: BlockRange) -> Result<(), BackendError>;

    /// Takes `range` from the guest and gives its memory back to the host before returning.
    ///
    /// `range` may be part of what one `plug` brought, or span several.
    ///
    /// The caller still holds a view of guest memory from before the call, and so may other
    /// devices; a hostile guest can have put a queue into memory it unplugs. An access to `range`
    /// through such a view must not bring the process down. (Replacing the mapping by fresh
    /// anonymous memory is enough; making it inaccessible is not.)
    ///
    /// # Errors
    /// The host could not do it. All of `range` is still memory the guest can use, then (its
    /// content may be gone): Linux puts the pages back on its free lists.
    fn unplug(&mut self, range: BlockRange) -> Result<(), BackendError>;
}
