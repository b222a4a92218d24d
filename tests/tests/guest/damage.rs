//! A checkpoint that is not as it was written is refused, and what is wrong is named.

use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};

use rustix::fs::SeekFrom;

use crate::image::{files_of, image};

pub fn a_damaged_checkpoint_is_refused_and_the_file_named() {
    let copy = image().copy();
    let id = image().checkpoint();
    let store = copy.store();
    store.open_checkpoint(&id).unwrap();
    let files = files_of(store, &id);
    assert_eq!(
        files.len(),
        3 + image().builds[0].image.record.disk_layers.len() + 1,
        "manifest, state, memory; base, a layer a step and that of the checkpoint"
    );
    for path in files {
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let length = file.metadata().unwrap().len();
        let refused = |what: &str| {
            let error = match store.open_checkpoint(&id) {
                Ok(_) => panic!("{name}, {what}: opened"),
                Err(error) => error.to_string(),
            };
            assert!(error.contains(name), "{what}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        };
        // Where there is data: damage in a hole is another test's, of the snapshot crate.
        let data = rustix::fs::seek(&file, SeekFrom::Data(length / 2))
            .or_else(|_| rustix::fs::seek(&file, SeekFrom::Data(0)))
            .unwrap();
        let at = data.max(length.min(3) - 1);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
        refused(&format!("byte {at} flipped"));
        file.write_all_at(&byte, at).unwrap();
        store.open_checkpoint(&id).unwrap();

        // A block of a disk, so that the length of a base is a disk's still.
        let short = (length - 1) / 4096 * 4096;
        let mut rest = vec![0; usize::try_from(length - short).unwrap()];
        file.read_exact_at(&mut rest, short).unwrap();
        file.set_len(short).unwrap();
        refused("cut short");
        file.write_all_at(&rest, short).unwrap();
        store.open_checkpoint(&id).unwrap();

        let away = path.with_extension("away");
        std::fs::rename(&path, &away).unwrap();
        refused("gone");
        std::fs::rename(&away, &path).unwrap();
        store.open_checkpoint(&id).unwrap();
    }
}
