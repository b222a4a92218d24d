//! Measuring, always the same way; all but [`api`] without a daemon.
//!
//! What is counted: T1 the VMM alone, from asked to all state set; T2 the guest's first act, an exit at its fork port;
//! T3 READY, the fork is who it should be and its agent answers; T4 the result of its first command; T5 how long the
//! parent of a live fork stood still. Every figure is shown with the machine it was measured on.
//!
//! [`source`] makes forks, of which a pool hit is never called a fork; [`fork`], [`live_fork`], [`grow`] and
//! [`checkpoint`] measure, [`stats`] makes percentiles of it, and [`render`] is for people. [`worker`] is the program
//! that guests work with, [`image`] what is forked unless something else is said. [`matrix`] is less about time: it
//! builds, finalizes and forks with everything there is, and stops at the first thing that is wrong.

pub mod api;
pub mod checkpoint;
mod cold;
mod error;
pub mod fork;
pub mod grow;
pub mod host;
pub mod image;
pub mod live_fork;
pub mod matrix;
mod proc;
pub mod render;
pub mod source;
mod stats;
mod worker;

pub use error::BenchError;
