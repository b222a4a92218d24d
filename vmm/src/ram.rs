//! Guest memory in the address space of the VM process.
//!
//! One reservation holds everything: boot RAM first, then the virtio-mem region, so that an offset
//! in the reservation is an offset in a checkpoint's `memory` file. What is not RAM at the moment
//! is `PROT_NONE` and costs nothing. RAM is private memory: anonymous, or a `MAP_PRIVATE` view of a
//! checkpoint file, whose pages the kernel shares between forks and copies when one writes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use spore_devices::virtio::Memory;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryAtomic, GuestRegionMmap};

use crate::layout;

/// Why guest memory could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// A system call failed.
    #[error("guest memory: {what} of {bytes} bytes: {source}")]
    Map {
        /// What was tried.
        what: &'static str,
        /// On how many bytes.
        bytes: u64,
        /// The cause.
        source: io::Error,
    },
    /// The sizes make no sense.
    #[error("guest memory: {0}")]
    Layout(String),
}

/// Sizes of guest memory, all in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RamLayout {
    /// RAM present at boot; a multiple of 2 MiB.
    pub boot: u64,
    /// Length of the virtio-mem region; a multiple of its block size, possibly 0.
    pub hotplug: u64,
}

impl RamLayout {
    /// Checks both sizes.
    ///
    /// # Errors
    /// [`RamError::Layout`] names the size and the rule.
    pub fn check(self) -> Result<Self, RamError> {
        let block = layout::HOTPLUG_BLOCK;
        if self.boot < 64 * layout::MIB
            || self.boot > layout::BOOT_RAM_MAX
            || !self.boot.is_multiple_of(block)
        {
            return Err(RamError::Layout(format!(
                "boot RAM of {} bytes: it must be a multiple of 2 MiB from 64 MiB to {} MiB",
                self.boot,
                layout::BOOT_RAM_MAX / layout::MIB
            )));
        }
        if self.hotplug > 1 << 40 || !self.hotplug.is_multiple_of(block) {
            return Err(RamError::Layout(format!(
                "virtio-mem region of {} bytes: it must be a multiple of 2 MiB, at most 1 TiB",
                self.hotplug
            )));
        }
        Ok(self)
    }

    /// Length of the whole reservation, and of a checkpoint's `memory` file, in bytes.
    pub fn span(self) -> u64 {
        self.boot + self.hotplug
    }

    /// The span offset of a guest-physical address that is RAM or may become it.
    pub fn offset_of(self, gpa: u64) -> Option<u64> {
        if let Some(inside) = gpa.checked_sub(layout::HOTPLUG) {
            return (inside < self.hotplug).then(|| self.boot + inside);
        }
        let mut before = 0;
        for (start, bytes) in layout::boot_ram(self.boot) {
            if gpa >= start && gpa - start < bytes {
                return Some(before + gpa - start);
            }
            before += bytes;
        }
        None
    }
}

/// From how many bytes on a hole of the checkpoint file is anonymous memory in the guest's.
const LARGE_HOLE: u64 = 16 * layout::MIB;

/// A run of plugged memory in the virtio-mem region: offset in the region and length, in bytes.
pub type PluggedRun = (u64, u64);

/// The memory of one VM.
pub struct Ram {
    layout: RamLayout,
    base: NonNull<u8>,
    view: GuestMemoryAtomic<Memory>,
    /// The checkpoint file behind the private mappings, if any.
    backing: Option<File>,
}

// SAFETY: `base` is an address range owned by this value for its whole life; access to the bytes
// goes through vm-memory's volatile accessors or through system calls, from any thread.
unsafe impl Send for Ram {}
// SAFETY: as above; methods that change mappings take `&self` but act on disjoint ranges handed
// out by the virtio-mem device, which is behind one lock.
unsafe impl Sync for Ram {}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the reservation is ours and nothing refers to it any more: the regions in `view`
        // do not own it and are dropped with this value.
        unsafe { libc::munmap(self.base.as_ptr().cast(), as_len(self.layout.span())) };
    }
}

#[allow(clippy::cast_possible_truncation)] // x86_64 only: usize is 64 bits.
fn as_len(bytes: u64) -> usize {
    bytes as usize
}

impl Ram {
    /// Fresh zeroed boot RAM and an empty virtio-mem region.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn anonymous(layout: RamLayout) -> Result<Self, RamError> {
        let ram = Self::reserve(layout.check()?)?;
        ram.map_anonymous(0, layout.boot)?;
        ram.publish(&[])?;
        Ok(ram)
    }

    /// Memory of a checkpoint: boot RAM and the `plugged` runs are private views of `file`, and fresh anonymous memory
    /// where it has large holes.
    ///
    /// # Errors
    /// [`RamError`], also when `file` is shorter than the layout says (its pages would be SIGBUS).
    pub fn from_checkpoint(layout: RamLayout, file: &File, plugged: &[PluggedRun]) -> Result<Self, RamError> {
        let layout = layout.check()?;
        let length = file
            .metadata()
            .map_err(|source| RamError::Map {
                what: "stat of the memory file",
                bytes: layout.span(),
                source,
            })?
            .len();
        if length != layout.span() {
            return Err(RamError::Layout(format!(
                "the memory file has {length} bytes, the machine needs {}",
                layout.span()
            )));
        }
        let mut ram = Self::reserve(layout)?;
        let backing = file.try_clone().map_err(|source| RamError::Map {
            what: "a handle on the memory file",
            bytes: length,
            source,
        })?;
        ram.backing = Some(backing);
        ram.map_file(file, 0, layout.boot)?;
        for &(offset, bytes) in plugged {
            ram.check_run(offset, bytes)?;
            ram.map_file(file, layout.boot + offset, bytes)?;
        }
        for (start, bytes) in ram.ranges(plugged) {
            for (from, to) in ram.large_holes(start, bytes)? {
                ram.map_anonymous(from, to - from)?;
            }
        }
        ram.publish(plugged)?;
        Ok(ram)
    }

    /// The sizes.
    pub fn layout(&self) -> RamLayout {
        self.layout
    }

    /// What devices and loaders use: only RAM that is there now.
    pub fn view(&self) -> &GuestMemoryAtomic<Memory> {
        &self.view
    }

    /// Host address of a span offset; valid for as long as `self`.
    pub fn host_address(&self, offset: u64) -> u64 {
        self.base.as_ptr() as u64 + offset
    }

    /// Gives a run of the virtio-mem region fresh zeroed anonymous memory.
    ///
    /// The caller updates memslots and then calls [`Ram::publish`].
    ///
    /// # Errors
    /// [`RamError`]; the run is then as before.
    pub fn plug(&self, offset: u64, bytes: u64) -> Result<(), RamError> {
        self.check_run(offset, bytes)?;
        self.map_anonymous(self.layout.boot + offset, bytes)
    }

    /// Takes a run of the virtio-mem region away and gives its host memory back at once. A
    /// checkpoint file behind it is neither written nor punched: the mapping is replaced.
    ///
    /// # Errors
    /// [`RamError`]; the run is then as before.
    pub fn unplug(&self, offset: u64, bytes: u64) -> Result<(), RamError> {
        self.check_run(offset, bytes)?;
        self.map_fixed(
            "unplug",
            self.layout.boot + offset,
            bytes,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
        )
    }

    /// Makes the view show boot RAM and exactly these plugged runs (offsets in the region).
    ///
    /// # Errors
    /// [`RamError::Layout`] when the runs overlap or leave the region.
    pub fn publish(&self, plugged: &[PluggedRun]) -> Result<(), RamError> {
        let mut regions = Vec::with_capacity(plugged.len() + 2);
        let mut offset = 0;
        for (gpa, bytes) in layout::boot_ram(self.layout.boot) {
            regions.push(self.region(gpa, offset, bytes)?);
            offset += bytes;
        }
        for &(start, bytes) in plugged {
            self.check_run(start, bytes)?;
            regions.push(self.region(layout::HOTPLUG + start, self.layout.boot + start, bytes)?);
        }
        let memory = Memory::from_regions(regions).map_err(|error| RamError::Layout(error.to_string()))?;
        // A poisoned lock only means that another thread died while replacing the map: ours replaces it whole.
        self.view
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .replace(memory);
        Ok(())
    }

    /// Gives the host memory behind a range of the span back; the guest finds zeros there, or in a
    /// file-backed range the checkpoint's own bytes. Offsets and lengths are rounded inwards to pages.
    ///
    /// # Errors
    /// What `madvise(2)` reports; nothing is lost then.
    pub fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let end =
            offset.saturating_add(bytes).min(self.layout.span()) / layout::PAGE_SIZE * layout::PAGE_SIZE;
        let start = offset.next_multiple_of(layout::PAGE_SIZE);
        if start >= end {
            return Ok(());
        }
        self.advise(start, end - start, libc::MADV_DONTNEED)
    }

    /// Advises the kernel on a range of the span (madvise(2)).
    ///
    /// # Errors
    /// What `madvise(2)` reports; `InvalidInput` for a range outside the span.
    pub fn advise(&self, offset: u64, bytes: u64, advice: i32) -> io::Result<()> {
        let inside = offset
            .checked_add(bytes)
            .is_some_and(|end| end <= self.layout.span());
        if !inside {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the range lies in our reservation. Advice that drops content is only ever given on memory that
        // the guest has given up.
        let result = unsafe {
            libc::madvise(
                self.host_address(offset) as *mut libc::c_void,
                as_len(bytes),
                advice,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Boot RAM and these plugged runs, as `(span offset, bytes)`, in ascending order.
    pub fn ranges(&self, plugged: &[PluggedRun]) -> Vec<(u64, u64)> {
        let boot = self.layout.boot;
        std::iter::once((0, boot))
            .chain(plugged.iter().map(|&(start, bytes)| (boot + start, bytes)))
            .collect()
    }

    /// Parts of a range of the span where the checkpoint file behind this memory has data, as
    /// `(start, end)` span offsets cut to the range. Empty for memory of a cold boot.
    ///
    /// # Errors
    /// What `lseek(2)` reports.
    pub fn file_data(&self, start: u64, bytes: u64) -> io::Result<Vec<(u64, u64)>> {
        let mut found = Vec::new();
        let Some(file) = &self.backing else {
            return Ok(found);
        };
        let end = start + bytes;
        let mut at = start;
        while at < end {
            let data = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
                Ok(data) => data,
                // Nothing but a hole up to the end.
                Err(rustix::io::Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            if data >= end {
                break;
            }
            let hole = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(data))?;
            found.push((data / layout::PAGE_SIZE * layout::PAGE_SIZE, hole.min(end)));
            at = hole;
        }
        Ok(found)
    }

    /// Large parts of a range where the checkpoint file has nothing, as `(start, end)` span offsets, whole huge pages.
    ///
    /// There is nothing to share there, so there they are anonymous memory, which huge pages can back: what a guest
    /// fills then costs a fault and a page table entry each 2 MiB, and a `fork(2)` copies that much less. Small holes
    /// stay as they are: a guest at rest writes a page here and there, and must not pay 2 MiB for it.
    fn large_holes(&self, start: u64, bytes: u64) -> Result<Vec<(u64, u64)>, RamError> {
        let data = self.file_data(start, bytes).map_err(|source| RamError::Map {
            what: "SEEK_DATA in the memory file",
            bytes,
            source,
        })?;
        let (mut holes, mut at) = (Vec::new(), start);
        for (from, to) in data.into_iter().chain([(start + bytes, start + bytes)]) {
            let hole = (
                at.next_multiple_of(layout::HOTPLUG_BLOCK),
                from / layout::HOTPLUG_BLOCK * layout::HOTPLUG_BLOCK,
            );
            if hole.0 + LARGE_HOLE <= hole.1 {
                holes.push(hole);
            }
            at = to;
        }
        Ok(holes)
    }

    fn region(&self, gpa: u64, offset: u64, bytes: u64) -> Result<GuestRegionMmap<()>, RamError> {
        // SAFETY: offset and length lie inside the reservation (checked by the callers against the
        // layout), which lives as long as `self`, and the view is dropped with it.
        let builder = unsafe {
            MmapRegionBuilder::new(as_len(bytes))
                .with_raw_mmap_pointer(self.base.as_ptr().add(as_len(offset)))
        };
        let mapping = builder
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .build()
            .map_err(|error| RamError::Layout(error.to_string()))?;
        GuestRegionMmap::new(mapping, GuestAddress(gpa))
            .ok_or_else(|| RamError::Layout(format!("region at {gpa:#x} of {bytes} bytes wraps around")))
    }

    fn check_run(&self, offset: u64, bytes: u64) -> Result<(), RamError> {
        let inside = offset
            .checked_add(bytes)
            .is_some_and(|end| end <= self.layout.hotplug);
        if bytes == 0 || !inside || !(offset | bytes).is_multiple_of(layout::HOTPLUG_BLOCK) {
            return Err(RamError::Layout(format!(
                "run of {bytes} bytes at {offset:#x} does not fit a virtio-mem region of {} bytes",
                self.layout.hotplug
            )));
        }
        Ok(())
    }

    fn reserve(layout: RamLayout) -> Result<Self, RamError> {
        // 2 MiB alignment lets transparent huge pages back the guest; the slack is given back.
        let align = layout::HOTPLUG_BLOCK;
        let length = as_len(layout.span() + align);
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let failed = || RamError::Map {
            what: "reservation",
            bytes: layout.span(),
            source: io::Error::last_os_error(),
        };
        if start == libc::MAP_FAILED {
            return Err(failed());
        }
        let head = (start as usize).next_multiple_of(as_len(align)) - start as usize;
        let tail = as_len(align) - head;
        // SAFETY: both ranges are the unused ends of the mapping made just above; `head` is at most
        // `align`, so the pointers stay inside it.
        let base = unsafe {
            if head > 0 {
                libc::munmap(start, head);
            }
            let base = start.cast::<u8>().add(head);
            if tail > 0 {
                libc::munmap(base.add(as_len(layout.span())).cast(), tail);
            }
            base
        };
        let base = NonNull::new(base).ok_or_else(failed)?;
        Ok(Self {
            layout,
            base,
            view: GuestMemoryAtomic::new(Memory::new()),
            backing: None,
        })
    }

    fn map_anonymous(&self, offset: u64, bytes: u64) -> Result<(), RamError> {
        self.map_fixed(
            "anonymous mapping",
            offset,
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
        )?;
        // Advice only: without huge pages everything works, slower.
        // SAFETY: the range was mapped just above and is ours.
        unsafe {
            libc::madvise(
                self.host_address(offset) as *mut libc::c_void,
                as_len(bytes),
                libc::MADV_HUGEPAGE,
            )
        };
        Ok(())
    }

    fn map_file(&self, file: &File, offset: u64, bytes: u64) -> Result<(), RamError> {
        self.map_fixed(
            "mapping of the memory file",
            offset,
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_NORESERVE,
            file.as_raw_fd(),
        )
    }

    /// Replaces the mapping of a range of the reservation; for files the file offset is the span offset.
    fn map_fixed(
        &self,
        what: &'static str,
        offset: u64,
        bytes: u64,
        prot: i32,
        flags: i32,
        fd: i32,
    ) -> Result<(), RamError> {
        debug_assert!(offset + bytes <= self.layout.span());
        let file_offset = if fd < 0 { 0 } else { offset };
        let file_offset = libc::off_t::try_from(file_offset)
            .map_err(|_| RamError::Layout(format!("offset {offset} is beyond what a file can have")))?;
        // SAFETY: the range lies inside our reservation, so MAP_FIXED replaces only our own mapping.
        let got = unsafe {
            libc::mmap(
                self.host_address(offset) as *mut libc::c_void,
                as_len(bytes),
                prot,
                flags | libc::MAP_FIXED,
                fd,
                file_offset,
            )
        };
        if got == libc::MAP_FAILED {
            return Err(RamError::Map {
                what,
                bytes,
                source: io::Error::last_os_error(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{GIB, HOTPLUG, HOTPLUG_BLOCK, MIB};
    use std::io::Write;
    use vm_memory::{Bytes, GuestAddressSpace};

    fn layout() -> RamLayout {
        RamLayout {
            boot: 64 * MIB,
            hotplug: 64 * MIB,
        }
    }

    #[test]
    fn an_offset_in_the_span_is_found_for_ram_and_for_nothing_else() {
        let layout = RamLayout {
            boot: 4 * GIB,
            hotplug: GIB,
        };
        assert_eq!(layout.offset_of(0x1234), Some(0x1234));
        assert_eq!(layout.offset_of(3 * GIB), None);
        assert_eq!(layout.offset_of(4 * GIB), Some(3 * GIB));
        assert_eq!(layout.offset_of(HOTPLUG), Some(4 * GIB));
        assert_eq!(layout.offset_of(HOTPLUG + GIB), None);
    }

    #[test]
    fn unplugged_memory_is_no_address_and_plugged_memory_is_zero() {
        let ram = Ram::anonymous(layout()).unwrap();
        let at = GuestAddress(HOTPLUG + HOTPLUG_BLOCK);
        assert!(ram.view().memory().read_obj::<u64>(at).is_err());
        ram.plug(HOTPLUG_BLOCK, HOTPLUG_BLOCK).unwrap();
        ram.publish(&[(HOTPLUG_BLOCK, HOTPLUG_BLOCK)]).unwrap();
        assert_eq!(ram.view().memory().read_obj::<u64>(at).unwrap(), 0);
        ram.view().memory().write_obj(7u64, at).unwrap();
        ram.publish(&[]).unwrap();
        ram.unplug(HOTPLUG_BLOCK, HOTPLUG_BLOCK).unwrap();
        assert!(ram.view().memory().read_obj::<u64>(at).is_err());
        ram.plug(HOTPLUG_BLOCK, HOTPLUG_BLOCK).unwrap();
        ram.publish(&[(HOTPLUG_BLOCK, HOTPLUG_BLOCK)]).unwrap();
        assert_eq!(
            ram.view().memory().read_obj::<u64>(at).unwrap(),
            0,
            "old bytes must not come back"
        );
    }

    #[test]
    fn a_private_view_of_a_file_reads_it_and_never_writes_it() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[5; 4096]).unwrap();
        file.set_len(layout().span()).unwrap();
        let ram = Ram::from_checkpoint(layout(), &file, &[(0, HOTPLUG_BLOCK)]).unwrap();
        let memory = ram.view().memory();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(4095)).unwrap(), 5);
        memory.write_obj(9u8, GuestAddress(4095)).unwrap();
        memory.write_obj(9u8, GuestAddress(HOTPLUG)).unwrap();
        let other = Ram::from_checkpoint(layout(), &file, &[(0, HOTPLUG_BLOCK)]).unwrap();
        assert_eq!(
            other.view().memory().read_obj::<u8>(GuestAddress(4095)).unwrap(),
            5
        );
        assert_eq!(
            other
                .view()
                .memory()
                .read_obj::<u8>(GuestAddress(HOTPLUG))
                .unwrap(),
            0
        );
        ram.publish(&[]).unwrap();
        ram.unplug(0, HOTPLUG_BLOCK).unwrap();
        assert_eq!(file.metadata().unwrap().len(), layout().span());
    }

    #[test]
    fn large_holes_of_the_file_are_anonymous_and_small_ones_are_not() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(layout().span()).unwrap();
        file.write_all(&[5; 4096]).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[6; 4096], 40 * MIB).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], 50 * MIB).unwrap();
        let ram = Ram::from_checkpoint(layout(), &file, &[]).unwrap();
        assert_eq!(ram.large_holes(0, 64 * MIB).unwrap(), [(2 * MIB, 40 * MIB)]);
        let byte = |at: u64| ram.view().memory().read_obj::<u8>(GuestAddress(at)).unwrap();
        assert_eq!(
            [0, 3 * MIB, 40 * MIB, 45 * MIB, 50 * MIB].map(byte),
            [5, 0, 6, 0, 7]
        );
        ram.view().memory().write_obj(9u8, GuestAddress(3 * MIB)).unwrap();
        let mut in_file = [1];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut in_file, 3 * MIB).unwrap();
        assert_eq!(in_file, [0]);
    }

    #[test]
    fn a_short_memory_file_and_runs_outside_the_region_are_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(layout().span() - 1).unwrap();
        assert!(matches!(
            Ram::from_checkpoint(layout(), &file, &[]),
            Err(RamError::Layout(_))
        ));
        let ram = Ram::anonymous(layout()).unwrap();
        for (offset, bytes) in [
            (0, 0),
            (1, HOTPLUG_BLOCK),
            (64 * MIB, HOTPLUG_BLOCK),
            (u64::MAX, HOTPLUG_BLOCK),
        ] {
            assert!(ram.plug(offset, bytes).is_err(), "{offset} {bytes}");
            assert!(ram.unplug(offset, bytes).is_err(), "{offset} {bytes}");
        }
    }

    #[test]
    fn absurd_sizes_are_refused() {
        for (boot, hotplug) in [
            (0, 0),
            (63 * MIB, 0),
            (64 * MIB + 1, 0),
            (!0x1F_FFFF, 0),
            (GIB, 1),
        ] {
            assert!(RamLayout { boot, hotplug }.check().is_err(), "{boot} {hotplug}");
        }
    }
}
