//! Files that say which machine this is, and that a fork changes without a system call.
//!
//! Such a file is a page of memory of ours (a file in tmpfs, mapped here), bind-mounted over the
//! file that programs read. A fork stores another text into the page, and every program sees it:
//! in whatever mount namespace that was made since, through a descriptor it opened before, in its
//! own mapping of the file. The disk below has nothing of it, so nothing of it gets into an image.
//!
//! The mount is read-only and the file has no other name: whoever truncated it would take the page
//! from under us. What is written to the file by a program therefore fails, as it should: in a
//! machine that is forked nobody else can say who it is.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};
use rustix::mount::{MountFlags, mount_bind, mount_remount};
use spore_protocol::fork_port::{boot_id_text, machine_id_text};

use crate::network::{RESOLV_CONF, resolv_conf_text};
use crate::status::draw_nonce;
use crate::wake::Text;

/// Where the files are made; nothing stays there.
const WORKSHOP: &str = "/run/spore";
const MACHINE_ID: &str = "/etc/machine-id";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A file in place of another.
#[derive(Debug)]
pub struct View {
    place: &'static str,
    text: NonNull<u8>,
    length: usize,
    /// Device and inode.
    file: (u64, u64),
}

// SAFETY: the mapping stays for the life of the process and is only written, by volatile stores.
unsafe impl Send for View {}
// SAFETY: as above; stores of two threads at once would mix two texts, and do no harm to memory.
unsafe impl Sync for View {}

/// The files of this machine, or why there is none.
#[derive(Debug)]
pub struct Views {
    /// `/etc/machine-id`.
    pub machine_id: io::Result<View>,
    /// The kernel's boot id.
    pub boot_id: io::Result<View>,
    /// `/etc/resolv.conf`, in a machine with a network card.
    pub resolv_conf: io::Result<View>,
}

impl Default for Views {
    fn default() -> Self {
        let none = || Err(io::Error::other("nothing was put in its place at boot"));
        Self {
            machine_id: none(),
            boot_id: none(),
            resolv_conf: none(),
        }
    }
}

impl Views {
    /// Puts the files in place. `/run` must be a tmpfs, and nothing else may run yet.
    pub fn mount(has_card: bool) -> Self {
        let views = Self {
            resolv_conf: match has_card {
                true => View::over(RESOLV_CONF, &resolv_conf_text(&[])),
                false => Err(io::Error::other("this machine has no network card")),
            },
            machine_id: View::over(MACHINE_ID, &machine_id_text(draw_nonce())),
            boot_id: mount_boot_id(),
        };
        // Fails if something of another's is in there.
        let _ = fs::remove_dir(WORKSHOP);
        views
    }
}

/// The kernel's own at first: it was drawn in this boot.
fn mount_boot_id() -> io::Result<View> {
    let boot_id = fs::read(BOOT_ID)?;
    if boot_id.len() != boot_id_text([0; 16]).len() {
        return Err(io::Error::other("it is no UUID"));
    }
    View::over(BOOT_ID, &boot_id)
}

impl View {
    fn over(place: &'static str, text: &[u8]) -> io::Result<Self> {
        let name = Path::new(WORKSHOP).join(Path::new(place).file_name().unwrap_or_default());
        match DirBuilder::new().mode(0o755).create(WORKSHOP) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let file = fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&name)?;
        file.set_len(text.len() as u64)?;
        let metadata = file.metadata()?;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing of ours.
        let mapped = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                text.len(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
        }?;
        let view = Self {
            place,
            text: NonNull::new(mapped.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?,
            length: text.len(),
            file: (metadata.dev(), metadata.ino()),
        };
        // The page is there from now on, to be written.
        view.show(text)?;
        // A base without the file gets an empty one: a machine id is then "drawn at boot" (machine-id(5)).
        if place != BOOT_ID && !Path::new(place).exists() {
            fs::File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o444)
                .open(place)?;
        }
        let mounted = mount_bind(&name, place).and_then(|()| {
            let flags = MountFlags::BIND
                | MountFlags::RDONLY
                | MountFlags::NOSUID
                | MountFlags::NODEV
                | MountFlags::NOEXEC;
            mount_remount(place, flags, "")
        });
        fs::remove_file(&name)?;
        mounted?;
        Ok(view)
    }

    /// Whether it still is what programs read there.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self) -> io::Result<()> {
        let metadata = fs::metadata(self.place)?;
        match (metadata.dev(), metadata.ino()) == self.file && metadata.len() == self.length as u64 {
            true => Ok(()),
            false => Err(io::Error::other("something else was put in its place since boot")),
        }
    }

    /// Where the text is, for whoever replaces it by one of the same length.
    pub fn text(&self) -> Text {
        Text(self.text)
    }

    /// Shows another text.
    ///
    /// # Errors
    /// When it is not as long as the one before.
    pub fn show(&self, text: &[u8]) -> io::Result<()> {
        if text.len() != self.length {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (index, byte) in text.iter().enumerate() {
            // SAFETY: the index is below the length of the mapping.
            unsafe { self.text.as_ptr().add(index).write_volatile(*byte) };
        }
        Ok(())
    }
}
