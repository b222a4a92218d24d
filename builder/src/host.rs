//! What a build needs of this host: the store, the bases and a kernel.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use spore_network::{Config as NetworkConfig, Network, NetworkError, Policy};
use spore_snapshot::Digest;
use spore_snapshot::store::{Store, StoreError};
use spore_vmm::boot::kernel_file;
use spore_vmm::guest::Watch;

use crate::base::BaseStore;
use crate::plugged::Plugged;

/// Why this host is not ready.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No kernel.
    #[error("kernel {path}: {source}; build one with `make kernel`, or name another with --kernel")]
    Kernel {
        /// Where it was looked for.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The store, the bases and a kernel.
#[derive(Debug)]
pub struct Host {
    store: Store,
    bases: BaseStore,
    kernel: PathBuf,
    kernel_read: Mutex<Option<(Watch, Digest)>>,
    network: NetworkConfig,
    /// Open since somebody needed it.
    open_network: Mutex<Option<Network>>,
}

impl Host {
    /// Opens the data directory `data` (made if missing) with the bases and kernels under `cache`;
    /// `kernel` overrides the default one.
    ///
    /// # Errors
    /// [`HostError::Store`]. A missing kernel is an error when it is needed.
    pub fn open(data: &Path, cache: &Path, kernel: Option<&Path>) -> Result<Self, HostError> {
        let kernel = kernel.map_or_else(|| cache.join("kernel/current/vmlinux"), Path::to_owned);
        Ok(Self {
            store: Store::open(data)?,
            bases: BaseStore::new(cache.join("bases")),
            kernel,
            kernel_read: Mutex::default(),
            network: NetworkConfig::default(),
            open_network: Mutex::default(),
        })
    }

    /// The same with another network.
    #[must_use]
    pub fn with_network(mut self, network: NetworkConfig) -> Self {
        self.network = network;
        self
    }

    /// The network that guests may be given a place on, opened when it is first asked for.
    ///
    /// # Errors
    /// What this host lacks for it.
    pub fn network(&self) -> Result<Network, NetworkError> {
        let mut open = self.open_network.lock().unwrap_or_else(PoisonError::into_inner);
        match &*open {
            Some(network) => Ok(network.clone()),
            None => {
                let network = Network::open(self.network.clone())?;
                Ok(open.insert(network).clone())
            }
        }
    }

    /// A place on the network with this policy; none if that is none.
    ///
    /// # Errors
    /// What this host lacks for it, or what is wrong with the policy.
    pub fn plug(&self, policy: &Policy) -> Result<Option<Plugged>, NetworkError> {
        match policy {
            Policy::None => Ok(None),
            policy => Plugged::new(&self.network()?, policy).map(Some),
        }
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The bases.
    pub fn bases(&self) -> &BaseStore {
        &self.bases
    }

    /// The kernel file.
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// BLAKE3 of the kernel file; read again only when it has changed.
    ///
    /// # Errors
    /// [`HostError::Kernel`].
    pub fn kernel_digest(&self) -> Result<Digest, HostError> {
        let failed = |source| HostError::Kernel {
            path: self.kernel.clone(),
            source,
        };
        // A device may never end, and a pipe would be read empty before the VM gets it.
        let metadata = std::fs::metadata(&self.kernel).map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::other("not a regular file")));
        }
        let mut read = self.kernel_read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((watch, digest)) = &*read
            && watch.is_current()
        {
            return Ok(*digest);
        }
        let watch = Watch::over([&self.kernel]).map_err(failed)?;
        let bytes = std::fs::read(&self.kernel).map_err(failed)?;
        let digest = Digest::of(&bytes);
        // Found out here, and not by a VM that was started for nothing.
        kernel_file::check(bytes).map_err(|why| failed(io::Error::other(why)))?;
        *read = Some((watch, digest));
        Ok(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_file_that_is_none_is_refused_before_anything_starts() {
        let data = tempfile::tempdir().unwrap();
        let kernel = data.path().join("kernel");
        std::fs::write(&kernel, "#!/bin/sh").unwrap();
        let host = Host::open(data.path(), data.path(), Some(&kernel)).unwrap();
        let message = host.kernel_digest().unwrap_err().to_string();
        assert!(message.contains("neither an ELF nor a bzImage"), "{message}");
    }

    #[test]
    fn a_kernel_that_is_no_regular_file_is_refused_and_not_read() {
        let data = tempfile::tempdir().unwrap();
        let kernel = Path::new("/dev/zero");
        let host = Host::open(data.path(), data.path(), Some(kernel)).unwrap();
        let message = host.kernel_digest().unwrap_err().to_string();
        assert!(
            message.starts_with("kernel /dev/zero: not a regular file"),
            "{message}"
        );
    }
}
