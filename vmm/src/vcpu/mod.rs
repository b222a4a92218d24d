//! vCPUs: what they see, how they start, how their state is saved.

pub mod cpuid;
pub mod entry;
pub mod gate;
pub mod run;
pub mod state;
