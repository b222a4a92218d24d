//! What a caller decides about a build that has no part in what comes of it.

use std::time::Duration;

use spore_network::Policy;

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
    /// What its steps reach.
    pub network: BuildNetwork,
    /// What stops it.
    pub cancel: Cancel,
}

/// What the steps of a build reach. What a sandbox of the image reaches is another question.
#[derive(Clone, Debug, Default)]
pub enum BuildNetwork {
    /// Everything beyond this host if there is a step that may need it: without privileges for that, only builds fail
    /// that install packages.
    #[default]
    IfPossible,
    /// Nothing.
    Off,
    /// This.
    To(Policy),
}

impl Options {
    /// The defaults, without a network.
    pub fn offline() -> Self {
        Self {
            network: BuildNetwork::Off,
            ..Self::default()
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            no_cache: false,
            step_limit: STEP_LIMIT,
            network: BuildNetwork::default(),
            cancel: Cancel::default(),
        }
    }
}
