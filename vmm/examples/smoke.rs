//! smoke
use spore_devices::virtio::block::BlockBackend;
use std::os::unix::fs::FileExt;
struct F(std::fs::File);
impl BlockBackend for F {
    fn len(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }
    fn read_at(&mut self, o: u64, d: &mut [u8]) -> std::io::Result<()> {
        self.0.read_exact_at(d, o)
    }
    fn write_at(&mut self, o: u64, d: &[u8]) -> std::io::Result<()> {
        self.0.write_all_at(d, o)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
    fn discard(&mut self, _: u64, _: u64) -> std::io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&mut self, o: u64, l: u64) -> std::io::Result<()> {
        self.0.write_all_at(&vec![0; l as usize], o)
    }
}
fn main() {
    tracing_subscriber::fmt().with_env_filter("debug").init();
    spore_vmm::vcpu::gate::install_kick_handler().unwrap();
    let a: Vec<String> = std::env::args().collect();
    let mb: u64 = a[1].parse().unwrap();
    let cfg = spore_vmm::machine::BootConfig {
        vcpus: a[2].parse().unwrap(),
        ram: spore_vmm::ram::RamLayout {
            boot: mb << 20,
            hotplug: 15 << 30,
        },
        kernel: a[3].clone().into(),
        cmdline: format!(
            "console=ttyS0 root=/dev/vda rw init=/sbin/init panic=-1 mitigations=off tsc=reliable {} {}",
            spore_vmm::kvm::KvmKind::detect().guest_options(),
            a[5..].join(" ")
        ),
    };
    let disk = Box::new(F(std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&a[4])
        .unwrap()));
    let console = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/stdout")
        .unwrap();
    let t = std::time::Instant::now();
    let m = spore_vmm::machine::Machine::boot(
        &cfg,
        spore_vmm::machine::Attachments {
            disk,
            console,
            vsock: None,
        },
    )
    .unwrap();
    eprintln!("ready {:?}", t.elapsed());
    let r = m.run().unwrap();
    loop {
        std::thread::sleep(std::time::Duration::from_millis(50));
        if let Some(e) = r.ended().get() {
            eprintln!("ended {e:?} after {:?}", t.elapsed());
            break;
        }
        if t.elapsed().as_secs() > 90 {
            eprintln!("timeout");
            break;
        }
    }
    r.pause().unwrap();
}
