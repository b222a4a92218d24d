//! Ctrl-C, and a polite request to end.

use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use spore_builder::Cancel;

use crate::failure::Failure;

/// What is cancelled by the first such signal; a second one ends the process at once, and what it leaves is swept at
/// the next start.
///
/// # Errors
/// When signals cannot be taken.
pub fn cancel_on_signal() -> Result<Cancel, Failure> {
    let cancel = Cancel::default();
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(Failure::internal)?;
    let cancelled = cancel.clone();
    thread::spawn(move || {
        for signal in signals.forever() {
            if cancelled.is_cancelled() {
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            cancelled.cancel();
        }
    });
    Ok(cancel)
}
