//! From the tree to an ext4 image, without being root.
//!
//! The tree is laid out in a directory that nobody else uses: directories first, then the files, and links
//! last, so that no path ever leads through one. `mke2fs -d` copies that, and what the builder of the directory
//! could not give it (owners, modes that would lock him out, attributes) `debugfs` sets in the image. e2fsprogs
//! 1.47.0, which Debian 12 has, cannot take a tar archive instead.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};

use super::error::ImportError;
use super::tree::{Kind, Node, NodeId, ROOT, Tree};

/// What the new file system is like.
#[derive(Clone, Debug)]
pub struct Format {
    /// Its size in MiB.
    pub size_mib: u64,
    /// How far it can grow, in MiB.
    pub grow_mib: u64,
    /// How many files it can have.
    pub inodes: u64,
    /// Its id and the seed of its directories' hashes.
    pub uuids: [String; 2],
    /// Its label, at most 16 bytes.
    pub label: String,
    /// The one time at which all of it was made, in seconds since 1970.
    pub epoch: u64,
}

/// Makes the image. `contents` has the files' contents, which are moved away; `work` is an empty directory.
///
/// # Errors
/// [`ImportError`].
pub fn make(
    tree: &Tree,
    contents: &Path,
    work: &Path,
    image: &Path,
    format: &Format,
) -> Result<(), ImportError> {
    let mut layout = Layout {
        tree,
        contents,
        root: work.join("root"),
        attributes: work.join("attributes"),
        script: Vec::new(),
        placed: HashMap::new(),
        values: 0,
        epoch: format.epoch,
    };
    fs::create_dir(&layout.root).map_err(ImportError::file(&layout.root))?;
    fs::create_dir(&layout.attributes).map_err(ImportError::file(&layout.attributes))?;
    layout.directory(ROOT, &mut Vec::new())?;
    let file = File::create(image).map_err(ImportError::file(image))?;
    file.set_len(format.size_mib << 20)
        .map_err(ImportError::file(image))?;
    mke2fs(&layout.root, image, format)?;
    debugfs(&layout.script, image, format.epoch)?;
    let mut command = tool("e2fsck", format.epoch);
    finished("e2fsck", command.arg("-fn").arg(image).stdout(Stdio::null()), &[])
}

struct Layout<'a> {
    tree: &'a Tree,
    contents: &'a Path,
    root: PathBuf,
    attributes: PathBuf,
    script: Vec<u8>,
    placed: HashMap<NodeId, PathBuf>,
    values: u64,
    epoch: u64,
}

impl Layout<'_> {
    /// A directory that is there already: what is in it, and then its own mode and times.
    fn directory(&mut self, id: NodeId, path: &mut Vec<u8>) -> Result<(), ImportError> {
        let node = self.tree.node(id);
        let Kind::Directory(children) = &node.kind else {
            return Ok(());
        };
        for (name, child) in children {
            let length = path.len();
            path.push(b'/');
            path.extend(name);
            let place = self.place(path);
            self.child(child.node, &place, path)?;
            path.truncate(length);
        }
        self.describe(node, path)
    }

    fn place(&self, path: &[u8]) -> PathBuf {
        let relative = path.strip_prefix(b"/").unwrap_or(path);
        self.root.join(OsStr::from_bytes(relative))
    }

    fn child(&mut self, id: NodeId, place: &Path, path: &mut Vec<u8>) -> Result<(), ImportError> {
        let failed = || ImportError::file(place);
        if let Some(first) = self.placed.get(&id) {
            return fs::hard_link(first, place).map_err(failed());
        }
        let node = self.tree.node(id);
        match &node.kind {
            Kind::Directory(_) => {
                fs::create_dir(place).map_err(failed())?;
                return self.directory(id, path);
            }
            Kind::File { content, .. } => {
                fs::rename(self.contents.join(content.to_string()), place).map_err(failed())?;
            }
            Kind::Symlink(target) => symlink(OsStr::from_bytes(target), place).map_err(failed())?,
            Kind::Fifo => {
                let made = mknodat(CWD, place, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
                made.map_err(|errno| failed()(errno.into()))?;
            }
        }
        self.placed.insert(id, place.to_owned());
        self.describe(node, path)
    }

    /// Mode and time, as far as the directory can have them, and the rest for debugfs.
    fn describe(&mut self, node: &Node, path: &[u8]) -> Result<(), ImportError> {
        let place = self.place(path);
        let meta = &node.meta;
        let (format, needed) = match node.kind {
            Kind::Directory(_) => (0o040_000, 0o700),
            Kind::File { .. } => (0o100_000, 0o400),
            Kind::Fifo => (0o010_000, 0),
            Kind::Symlink(_) => (0o120_000, 0),
        };
        let is_link = matches!(node.kind, Kind::Symlink(_));
        if !is_link {
            let mode = Permissions::from_mode(meta.mode | needed);
            fs::set_permissions(&place, mode).map_err(ImportError::file(&place))?;
        }
        // In range: it is at most 34 bits.
        let seconds = i64::try_from(meta.mtime).unwrap_or(0);
        let at = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: at,
            last_modification: at,
        };
        let set = utimensat(CWD, &place, &times, AtFlags::SYMLINK_NOFOLLOW);
        set.map_err(|errno| ImportError::file(&place)(errno.into()))?;

        let name = quoted(if path.is_empty() { b"/" } else { path });
        let mut set = |field: &str, value: std::fmt::Arguments<'_>| {
            let mut line = String::new();
            // A String takes everything.
            let _ = writeln!(line, " {field} {value}");
            self.script.extend(b"sif ");
            self.script.extend(&name);
            self.script.extend(line.bytes());
        };
        set("uid", format_args!("{}", meta.uid));
        set("gid", format_args!("{}", meta.gid));
        set("ctime", format_args!("@{}", self.epoch));
        if path.is_empty() || (!is_link && meta.mode & needed != needed) {
            set("mode", format_args!("0{:o}", format | meta.mode));
        }
        if path.is_empty() {
            set("mtime", format_args!("@{}", meta.mtime));
            set("atime", format_args!("@{}", meta.mtime));
        }
        for (attribute, value) in &meta.xattrs {
            let file = self.attributes.join(self.values.to_string());
            self.values += 1;
            fs::write(&file, value).map_err(ImportError::file(&file))?;
            self.script.extend(b"ea_set -f ");
            self.script.extend(quoted(file.as_os_str().as_bytes()));
            self.script.push(b' ');
            self.script.extend(&name);
            self.script.push(b' ');
            self.script.extend(quoted(attribute.as_bytes()));
            self.script.push(b'\n');
        }
        Ok(())
    }
}

/// A word for debugfs: a quote in quotes is two. Line breaks do not get this far.
fn quoted(word: &[u8]) -> Vec<u8> {
    let mut quoted = vec![b'"'];
    for byte in word {
        if *byte == b'"' {
            quoted.push(b'"');
        }
        quoted.push(*byte);
    }
    quoted.push(b'"');
    quoted
}

/// A tool, where Debian has it even if it is not in the user's PATH.
fn tool(name: &'static str, epoch: u64) -> Command {
    let path = ["/usr/sbin", "/sbin"]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.is_file());
    let mut command = Command::new(path.unwrap_or_else(|| name.into()));
    command
        .env("E2FSPROGS_FAKE_TIME", epoch.to_string())
        .env("LC_ALL", "C")
        .env("TZ", "UTC");
    command
}

/// As `guest/bases/assemble.sh` does it; why so is said there.
fn mke2fs(root: &Path, image: &Path, format: &Format) -> Result<(), ImportError> {
    let [uuid, seed] = &format.uuids;
    let extended = format!(
        "hash_seed={seed},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,resize={}",
        format.grow_mib * 256
    );
    let mut command = tool("mke2fs", format.epoch);
    command
        .args([
            "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-J", "size=16",
        ])
        .args(["-N", &format.inodes.to_string(), "-L", &format.label, "-U", uuid])
        .args([
            "-O",
            "has_journal,resize_inode,^metadata_csum,^metadata_csum_seed,^uninit_bg,^orphan_file",
        ])
        .args(["-E", &extended, "-d"])
        .arg(root)
        .arg(image)
        .stdout(Stdio::null());
    finished("mke2fs", &mut command, &[])
}

fn debugfs(script: &[u8], image: &Path, epoch: u64) -> Result<(), ImportError> {
    let mut command = tool("debugfs", epoch);
    command.args(["-w", "-f", "-"]).arg(image).stdout(Stdio::null());
    finished("debugfs", &mut command, script)
}

/// Runs a tool with this to read. Whatever it says on standard error, but for its version, is a failure:
/// debugfs has no other way to say so.
fn finished(name: &'static str, command: &mut Command, input: &[u8]) -> Result<(), ImportError> {
    let problem = |problem: String| ImportError::Tool { tool: name, problem };
    let failed = |error: io::Error| problem(format!("cannot be run ({error}); it is in Debian's e2fsprogs"));
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        // It may stop to read before it has said why.
        let feed = move || stdin.map(|mut stdin| stdin.write_all(input));
        let feeding = std::thread::Builder::new().spawn_scoped(scope, feed);
        if feeding.is_err() {
            // Its child that has nothing to read, and never will, is not to be waited for.
            child.kill()?;
        }
        let output = child.wait_with_output();
        feeding.and(output)
    });
    let output = output.map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stderr);
    let said: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with(&format!("{name} 1.")))
        .collect();
    // e2fsck says nothing but its version there when all is well.
    if output.status.success() && said.is_empty() {
        return Ok(());
    }
    let said = said.iter().take(3).copied().collect::<Vec<_>>().join("; ");
    Err(problem(match said.is_empty() {
        true => format!("failed ({})", output.status),
        false => said,
    }))
}
