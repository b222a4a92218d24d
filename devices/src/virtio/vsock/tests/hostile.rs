//! A guest that means no good.
