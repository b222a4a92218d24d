//! Builds that are stopped from outside.

pub use spore_vmm::cancel::Cancel;
use spore_vmm::cancel::{WatchError, Watched};
use spore_vmm::guest::Guest;

use crate::error::BuildError;

/// Watches over the guest of a build.
///
/// # Errors
/// [`BuildError::Cancelled`] if it is too late for that.
pub(crate) fn watch<'a>(cancel: &'a Cancel, guest: &Guest) -> Result<Watched<'a>, BuildError> {
    cancel.watch(guest.killer()).map_err(|error| match error {
        WatchError::Cancelled(_) => BuildError::Cancelled,
        WatchError::Host(error) => BuildError::internal(error),
    })
}

/// The error that an error is: that of a guest that was ended on purpose is none of its own.
pub(crate) fn explain(cancel: &Cancel, error: BuildError) -> BuildError {
    match cancel.is_cancelled() {
        true => BuildError::Cancelled,
        false => error,
    }
}
