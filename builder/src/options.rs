//! What a caller decides about a build that has no part in what comes of it.

use std::time::Duration;

use crate::cancel::Cancel;

/// How long a step may take unless told otherwise.
pub const STEP_LIMIT: Duration = Duration::from_secs(1800);

/// How to build.
#[derive(Clone, Debug)]
pub struct Options {
    /// Run every step, whatever is known of earlier builds. What comes of it is remembered all the same.
    pub no_cache: bool,
    /// How long one step may take, all its commands together.
    pub step_limit: Duration,
    /// What stops it.
    pub cancel: Cancel,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            no_cache: false,
            step_limit: STEP_LIMIT,
            cancel: Cancel::default(),
        }
    }
}
