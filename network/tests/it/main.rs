//! The network on hosts that the tests make of namespaces: what the rules are, what they do, and what is left.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod harness;
mod lifecycle;
mod reach;
mod refusals;
mod rules;
