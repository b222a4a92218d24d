//! Writing a machine at rest to files, and sealing what its disk became.

use std::path::Path;

use spore_snapshot::checkpoint::{MemoryWriter, write_state_to};

use super::{Server, Vm, cannot, failed};
use crate::device_set::{DeviceSet, lock};
use crate::hotplug::run_of;
use crate::layout::MIB;
use crate::machine::write_memory;
use crate::pagemap::Pagemap;
use crate::process::message::{Failure, FailureKind, Reply, SaveSpec, Saved};
use crate::process::wire::Descriptors;
use crate::ram::PluggedRun;
use crate::vcpu::cpuid;

impl Server {
    /// Writes the template's memory and state. It stays a template.
    pub(super) fn save(&self, spec: &SaveSpec, mut came: Descriptors) -> Result<Reply, Failure> {
        let Vm::Template(template, disk) = &self.vm else {
            return Err(cannot("save", &self.vm));
        };
        let (state, plugged) = (template.state(), template.plugged());
        let payload = postcard::to_stdvec(state).map_err(failed(FailureKind::Host))?;
        let mut next = |what| came.next(what).map_err(failed(FailureKind::Host));
        let (memory, state_file, table) = (next("the memory")?, next("the state")?, next("the page table")?);
        let mut writer = MemoryWriter::to_file(memory.into(), &spec.memory, state.ram.span())
            .map_err(failed(FailureKind::Host))?;
        writer.expect_bytes(spec.resident_bytes.max(MIB));
        let table = Pagemap::of(table.into());
        write_memory(template.ram(), plugged, &table, &mut writer).map_err(failed(FailureKind::Host))?;
        let memory = writer.finish().map_err(failed(FailureKind::Host))?.into_record();
        let state_record =
            write_state_to(&state_file.into(), &spec.state, &payload).map_err(failed(FailureKind::Host))?;
        Ok(Reply::Saved(Box::new(Saved {
            memory,
            state: state_record.into_record(),
            disk_bytes: disk.bytes(),
            vcpus: u32::try_from(state.vcpus.len()).unwrap_or(u32::MAX),
            memory_bytes: state.ram.boot + plugged.iter().map(|(_, bytes)| bytes).sum::<u64>(),
            cpu_features: state
                .vcpus
                .first()
                .map(|vcpu| cpuid::feature_words(vcpu.cpuid()))
                .unwrap_or_default(),
        })))
    }

    pub(super) fn seal_frozen(&self) -> Result<Reply, Failure> {
        let layers = self.disk()?.seal_frozen().map_err(failed(FailureKind::Disk))?;
        Ok(Reply::Sealed(layers))
    }

    pub(super) fn freeze_disk(&self, next: &Path, mut came: Descriptors) -> Result<Reply, Failure> {
        self.running("freeze the disk")?;
        let mut next_file = |what| came.next(what).map_err(failed(FailureKind::Host));
        let (file, reader) = (next_file("the next overlay")?, next_file("the overlay to read")?);
        self.disk()?
            .freeze(file.into(), next, reader)
            .map_err(failed(FailureKind::Disk))?;
        self.seal_frozen()
    }

    pub(super) fn seal_disk(&self) -> Result<Reply, Failure> {
        match (&self.vm, &self.disk) {
            (Vm::Over(_), Some(disk)) => {
                let layers = disk.seal_for_good().map_err(failed(FailureKind::Disk))?;
                Ok(Reply::Sealed(layers))
            }
            (vm, _) => Err(cannot("seal the disk", vm)),
        }
    }
}

pub(super) fn plugged_runs(devices: &DeviceSet) -> Vec<PluggedRun> {
    lock(&devices.mem).device().plugged_ranges().map(run_of).collect()
}
