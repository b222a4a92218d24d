//! Manifests of strangers: refused in one line, or the same whenever they are read.

use spore_builder::{HostMemory, Limits, Manifest, MiB};

pub fn run(data: &[u8]) {
    let limits = Limits {
        host_memory: HostMemory::new(MiB::new(16_000)),
    };
    match Manifest::parse(data, &limits) {
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
        }
        Ok(manifest) => {
            let again = Manifest::parse(data, &limits).expect("it was good before");
            assert_eq!(manifest.content_hash(), again.content_hash());
        }
    }
}
