//! Names of checkpoints that are being made: no two get the same.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use spore_types::ErrorCode;

use crate::error::{Error, Result};

/// The names.
#[derive(Debug, Default)]
pub struct Naming(Mutex<BTreeSet<String>>);

/// One of them. It is free again when this is dropped: then there is a checkpoint of that name, or there is none.
#[derive(Debug)]
pub struct Taken<'a> {
    naming: &'a Naming,
    name: String,
}

impl Naming {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a name, before it is looked whether there is a checkpoint with it.
    ///
    /// # Errors
    /// `conflict` when somebody has it.
    pub fn begin(&self, name: &str) -> Result<Taken<'_>> {
        match self.lock().insert(name.to_owned()) {
            true => Ok(Taken {
                naming: self,
                name: name.to_owned(),
            }),
            false => {
                let message = format!("a checkpoint {name:?} is being made already");
                Err(Error::new(ErrorCode::Conflict, message))
            }
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.naming.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_checkpoints_at_a_time() {
        let naming = Naming::default();
        let first = naming.begin("a").unwrap();
        assert_eq!(naming.begin("a").unwrap_err().code(), ErrorCode::Conflict);
        naming.begin("b").unwrap();
        drop(first);
        naming.begin("a").unwrap();
    }
}
