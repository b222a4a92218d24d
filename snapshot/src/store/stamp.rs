//! Stamps: which files were read whole and found intact, so that not every start of a VM hashes its image.
//!
//! A stamp says what the file looked like at that time: device, inode, size, modification and change time, and
//! the boot of the host. It counts while all of these are the same. A write, a truncation or a replacement
//! through the file system changes the change time, which no program can set; and a reboot ends all stamps.
//!
//! Clocks of file systems tick as slowly as 10 ms, so a file changed twice within a tick can look the same. A
//! stamp is therefore only given when the file was at rest for [`SETTLED`] before it was read.
//!
//! What stamps do not see: bits that change on the medium while the host runs, and stores through a shared
//! writable mapping that was dirty already when the stamp was given. [`Trust::Nothing`] sees both.

use std::fmt::Write;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Store, Trust};

/// How long a file must not have changed before a stamp means anything.
const SETTLED: Duration = Duration::from_millis(100);

impl Store {
    /// Runs `check`, which reads all of `file`, unless a stamp called `name` says that this is not needed.
    /// `what` is what the file was compared with: a stamp for something else doesn't count.
    ///
    /// # Errors
    /// Whatever `check` says. Trouble with stamps is no error: it only costs the check.
    pub(super) fn check_once<E>(
        &self,
        trust: Trust,
        name: &str,
        what: &str,
        file: &File,
        check: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let path = self.verified_dir().join(name);
        let before = look(file, what);
        if trust == Trust::Stamps
            && let Ok(look) = &before
            && std::fs::read(&path).is_ok_and(|stamp| stamp == look.text.as_bytes())
        {
            return Ok(());
        }
        check()?;
        if let (Ok(before), Ok(after)) = (before, look(file, what))
            && before.text == after.text
            && before.settled
        {
            // Torn or lost, it merely doesn't match: no need for it to be durable.
            let _ = std::fs::write(&path, after.text);
        }
        Ok(())
    }

    /// Forgets a stamp, because its file is going away.
    pub(super) fn forget(&self, name: &str) {
        let _ = std::fs::remove_file(self.verified_dir().join(name));
    }
}

struct Look {
    text: String,
    settled: bool,
}

fn look(file: &File, what: &str) -> io::Result<Look> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let m = file.metadata()?;
    let mut text = format!("spore verified 1\n{what}\nboot {}\n", boot.trim());
    let _ = writeln!(text, "device {} inode {} size {}", m.dev(), m.ino(), m.size());
    let _ = writeln!(text, "mtime {}.{:09}", m.mtime(), m.mtime_nsec());
    let _ = writeln!(text, "ctime {}.{:09}", m.ctime(), m.ctime_nsec());
    let changed = u64::try_from(m.ctime())
        .ok()
        .zip(u32::try_from(m.ctime_nsec()).ok())
        .map(|(seconds, nanos)| UNIX_EPOCH + Duration::new(seconds, nanos));
    let settled = changed
        .and_then(|changed| SystemTime::now().duration_since(changed).ok())
        .is_some_and(|rest| rest >= SETTLED);
    Ok(Look { text, settled })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::os::unix::fs::FileExt;

    struct Checked {
        store: Store,
        file: File,
        count: Cell<u32>,
    }

    impl Checked {
        /// How often the file was read when it was asked for now.
        fn ask(&self, trust: Trust, what: &str) -> u32 {
            let before = self.count.get();
            self.store
                .check_once::<()>(trust, "name", what, &self.file, || {
                    self.count.set(self.count.get() + 1);
                    Ok(())
                })
                .unwrap();
            self.count.get() - before
        }
    }

    fn checked(dir: &tempfile::TempDir) -> Checked {
        let store = Store::open(dir.path()).unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "content").unwrap();
        let file = File::options().read(true).write(true).open(path).unwrap();
        Checked {
            store,
            file,
            count: Cell::new(0),
        }
    }

    #[test]
    fn an_unchanged_file_is_read_once_and_a_changed_one_again() {
        let dir = tempfile::tempdir().unwrap();
        let checked = checked(&dir);
        let settle = || std::thread::sleep(SETTLED + Duration::from_millis(20));
        settle();
        assert_eq!(checked.ask(Trust::Stamps, "a"), 1);
        assert_eq!(checked.ask(Trust::Stamps, "a"), 0);
        assert_eq!(checked.ask(Trust::Nothing, "a"), 1);
        assert_eq!(checked.ask(Trust::Stamps, "b"), 1, "compared with something else");
        for change in 0..3 {
            settle();
            assert_eq!(checked.ask(Trust::Stamps, "a"), 1, "{change}");
            assert_eq!(checked.ask(Trust::Stamps, "a"), 0, "{change}");
            match change {
                0 => checked.file.write_all_at(b"C", 0).unwrap(),
                1 => checked.file.set_len(3).unwrap(),
                _ => {
                    // Setting the modification time back does not help: the change time tells.
                    let mtime = checked.file.metadata().unwrap().modified().unwrap();
                    checked.file.write_all_at(b"x", 0).unwrap();
                    checked.file.set_modified(mtime).unwrap();
                }
            }
        }
        assert_eq!(checked.ask(Trust::Stamps, "a"), 1);
    }

    #[test]
    fn a_file_that_just_changed_gets_no_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let checked = checked(&dir);
        assert_eq!(checked.ask(Trust::Stamps, "a"), 1);
        assert_eq!(checked.ask(Trust::Stamps, "a"), 1);
    }
}
