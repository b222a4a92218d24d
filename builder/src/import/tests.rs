//! Imports of images that these tests make themselves, good ones and hostile ones.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::*;

/// Entries of a layer, one after the other.
struct LayerMaker(Builder<Vec<u8>>);

impl LayerMaker {
    fn new() -> LayerMaker {
        LayerMaker(Builder::new(Vec::new()))
    }

    /// With this name as it is: the library would not write many of them.
    fn entry(mut self, name: &str, kind: EntryType, mode: u32, target: &str, content: &[u8]) -> LayerMaker {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(100_000);
        header.set_mtime(1_600_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &str) -> LayerMaker {
        self.entry(name, EntryType::Regular, 0o644, "", content.as_bytes())
    }

    fn dir(self, name: &str) -> LayerMaker {
        self.entry(name, EntryType::Directory, 0o755, "", b"")
    }

    fn symlink(self, name: &str, target: &str) -> LayerMaker {
        self.entry(name, EntryType::Symlink, 0o777, target, b"")
    }

    fn pax(mut self, records: &[(&str, &[u8])]) -> LayerMaker {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn config(diff_ids: &[String]) -> Value {
    json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["A=b"], "WorkingDir": "/srv", "User": "app", "Entrypoint": ["/bin/x"], "Cmd": ["-y"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

fn diff_ids(layers: &[Vec<u8>]) -> Vec<String> {
    layers
        .iter()
        .map(|layer| format!("sha256:{}", sha256(layer)))
        .collect()
}

/// An OCI layout: each layer with how it is packed.
fn oci(at: &Path, layers: &[Vec<u8>], pack: fn(&[u8]) -> Vec<u8>) -> Source {
    oci_with(at, layers, pack, config(&diff_ids(layers)))
}

fn oci_with(at: &Path, layers: &[Vec<u8>], pack: fn(&[u8]) -> Vec<u8>, config: Value) -> Source {
    let blobs = at.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |kind: &str, bytes: &[u8]| {
        fs::write(blobs.join(sha256(bytes)), bytes).unwrap();
        json!({"mediaType": kind, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len()})
    };
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| put("application/vnd.oci.image.layer.v1.tar+gzip", &pack(layer)))
        .collect();
    let config = put(
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": layers,
    });
    let mut manifest = put(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(at.join("index.json"), index.to_string()).unwrap();
    fs::write(at.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    Source::Oci(at.to_owned(), Some("latest".to_owned()))
}

/// What is in the tree after these layers, by path: a file's content, a link's target.
fn merged(layers: &[Vec<u8>]) -> Result<BTreeMap<String, String>, ImportError> {
    let work = tempfile::tempdir().unwrap();
    let mut tree = Tree::new(EPOCH);
    let mut counts = Counts::default();
    for (number, layer) in layers.iter().enumerate() {
        layer::read(
            &mut layer.as_slice(),
            number,
            &mut tree,
            work.path(),
            &mut counts,
            100,
        )?;
    }
    let mut all = BTreeMap::new();
    walk(&tree, tree::ROOT, "", work.path(), &mut all);
    Ok(all)
}

fn walk(tree: &Tree, id: tree::NodeId, path: &str, contents: &Path, all: &mut BTreeMap<String, String>) {
    let text = match &tree.node(id).kind {
        Kind::Directory(children) => {
            for (name, child) in children {
                let path = format!("{path}/{}", String::from_utf8_lossy(name));
                walk(tree, child.node, &path, contents, all);
            }
            "dir".to_owned()
        }
        Kind::File { content, .. } => fs::read_to_string(contents.join(content.to_string())).unwrap(),
        Kind::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
        Kind::Fifo => "fifo".to_owned(),
    };
    all.insert(path.to_owned(), text);
}

fn paths(layers: &[Vec<u8>]) -> Vec<String> {
    merged(layers).unwrap().into_keys().collect()
}

fn refusal(layer: LayerMaker) -> String {
    merged(&[layer.done()]).unwrap_err().to_string()
}

#[test]
fn a_whiteout_hides_what_is_below_and_not_what_is_beside_it() {
    let low = LayerMaker::new()
        .dir("a")
        .file("a/x", "1")
        .file("a/y", "1")
        .file("b", "1")
        .done();
    let high = LayerMaker::new()
        .file("a/x", "2")
        .file("a/.wh.x", "")
        .file(".wh.b", "")
        .file(".wh.none", "");
    let high = high.file(".wh..wh.plnk", "").done();
    let all = merged(&[low, high]).unwrap();
    let expected = [("", "dir"), ("/a", "dir"), ("/a/x", "2"), ("/a/y", "1")];
    assert_eq!(all, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
}

#[test]
fn an_opaque_directory_hides_all_that_is_below_it_wherever_the_mark_stands() {
    let low = || {
        LayerMaker::new()
            .dir("a")
            .dir("a/sub")
            .file("a/sub/x", "1")
            .file("a/y", "1")
            .done()
    };
    let first = LayerMaker::new()
        .dir("a")
        .file("a/.wh..wh..opq", "")
        .file("a/z", "2")
        .done();
    let last = LayerMaker::new()
        .dir("a")
        .file("a/z", "2")
        .file("a/.wh..wh..opq", "")
        .done();
    assert_eq!(paths(&[low(), first]), ["", "/a", "/a/z"]);
    assert_eq!(paths(&[low(), last]), ["", "/a", "/a/z"]);
}

#[test]
fn a_later_layer_replaces_kinds_and_keeps_a_directory_that_it_mentions() {
    let low = LayerMaker::new()
        .dir("d")
        .file("d/x", "1")
        .dir("e")
        .file("e/x", "1")
        .symlink("l", "/d")
        .done();
    let high = LayerMaker::new()
        .dir("d")
        .file("e", "now a file")
        .dir("l")
        .file("l/x", "2")
        .done();
    assert_eq!(paths(&[low, high]), ["", "/d", "/d/x", "/e", "/l", "/l/x"]);
}

#[test]
fn a_removed_directory_that_comes_back_is_empty() {
    let low = LayerMaker::new().dir("d").file("d/x", "1").done();
    let gone = LayerMaker::new().file(".wh.d", "").done();
    let back = LayerMaker::new().dir("d").done();
    assert_eq!(paths(&[low, gone, back]), ["", "/d"]);
}

#[test]
fn hostile_names_are_refused_by_name() {
    let outside = LayerMaker::new().file("../../etc/passwd", "x");
    assert!(refusal(outside).contains(r#"entry "../../etc/passwd" is refused: it has `..` in its name"#));
    let inside = LayerMaker::new().file("a/../../b", "x");
    assert!(refusal(inside).contains("`..`"));
    let through = LayerMaker::new().symlink("out", "/tmp").file("out/x", "x");
    assert!(refusal(through).contains(r#"entry "out/x" is refused: "out" on the way is a link"#));
    let hidden = LayerMaker::new().symlink("out", "/tmp").file("out/.wh.x", "");
    assert!(refusal(hidden).contains("on the way is a link"));
    let under_file = LayerMaker::new().file("f", "x").file("f/x", "x");
    assert!(refusal(under_file).contains("on the way is no directory"));
    let line = LayerMaker::new().file("a\nb", "x");
    assert!(refusal(line).contains("line break"));
    assert!(refusal(LayerMaker::new().file("d/.wh...", "")).contains("hides nothing"));
}

#[test]
fn a_name_from_the_root_is_one_in_the_image() {
    let layer = LayerMaker::new().file("/etc/passwd", "x").done();
    assert_eq!(paths(&[layer]), ["", "/etc", "/etc/passwd"]);
}

#[test]
fn hard_links_stay_within_the_image() {
    let link = |name, target| {
        LayerMaker::new()
            .file("f", "x")
            .entry(name, EntryType::Link, 0o644, target, b"")
    };
    assert_eq!(merged(&[link("g", "/f").done()]).unwrap()["/g"], "x");
    assert!(
        refusal(link("g", "/etc/shadow"))
            .contains(r#"entry "g" is refused: it is a link to a file that is not"#)
    );
    assert!(refusal(link("g", "../f")).contains("its target: it has `..`"));
    let through =
        LayerMaker::new()
            .symlink("out", "/")
            .entry("g", EntryType::Link, 0o644, "out/etc/shadow", b"");
    assert!(refusal(through).contains("leads through the link"));
    let to_dir = LayerMaker::new()
        .dir("d")
        .entry("g", EntryType::Link, 0o644, "d", b"");
    assert!(refusal(to_dir).contains("hard link to a directory"));
}

#[test]
fn what_is_not_understood_is_refused() {
    let sparse = LayerMaker::new().entry("s", EntryType::GNUSparse, 0o644, "", b"");
    assert!(refusal(sparse).contains("sparse"));
    let pax = LayerMaker::new()
        .pax(&[("GNU.sparse.major", b"1")])
        .file("s", "x");
    assert!(refusal(pax).contains("sparse"));
    let huge = LayerMaker::new().pax(&[("size", b"8589934592")]).file("s", "x");
    assert!(refusal(huge).contains("8 GiB"));
    let odd = LayerMaker::new().entry("s", EntryType::new(b'Z'), 0o644, "", b"");
    assert!(refusal(odd).contains("not known"));
    let long = vec![b'x'; (1 << 20) + 1];
    let long = LayerMaker::new().entry("s", EntryType::GNULongName, 0o644, "", &long);
    assert!(refusal(long).contains("absurdly long"));
    let cut = LayerMaker::new().file("f", &"x".repeat(4000)).done();
    assert!(matches!(
        merged(&[cut[..1024].to_vec()]),
        Err(ImportError::Layer { .. })
    ));
}

#[test]
fn more_entries_than_allowed_are_refused() {
    let mut layer = LayerMaker::new();
    for number in 0..101 {
        layer = layer.dir(&format!("d{number}"));
    }
    assert!(
        refusal(layer)
            .contains("more than 100 entries; if it is to be trusted, allow more with --max-entries")
    );
}

struct Bench {
    directory: tempfile::TempDir,
    store: BaseStore,
    agent: PathBuf,
}

impl Bench {
    fn new() -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let agent = directory.path().join("agent");
        fs::write(&agent, "the agent").unwrap();
        let store = BaseStore::new(directory.path().join("bases"));
        Bench {
            directory,
            store,
            agent,
        }
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn import(&self, source: &Source, limits: &ImportLimits) -> Result<Imported, ImportError> {
        let name = BaseName::parse("img").unwrap();
        import(&self.store, source, &name, &self.agent, limits)
    }

    /// What is in the directory of bases, without locks.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.store.directory())
            .into_iter()
            .flatten()
            .flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names
            .filter(|name| !name.ends_with(".lock") && !name.ends_with(".use"))
            .collect()
    }
}

const SMALL: ImportLimits = ImportLimits {
    max_bytes: 1 << 20,
    max_entries: 1000,
    disk_mib: 256,
};

fn debugfs(base: &Base, request: &str) -> String {
    let output = Command::new("/usr/sbin/debugfs")
        .args(["-R", request])
        .arg(base.rootfs())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Tests that make a file system need e2fsprogs.
fn has_e2fsprogs() -> bool {
    let there = Path::new("/usr/sbin/mke2fs").exists() && Path::new("/usr/sbin/debugfs").exists();
    if !there {
        println!("SKIPPED: no e2fsprogs");
    }
    there
}

fn a_whole_image() -> Vec<Vec<u8>> {
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let low = LayerMaker::new()
        .dir("usr")
        .dir("usr/bin")
        .dir("usr/sbin")
        .symlink("bin", "usr/bin")
        .symlink("sbin", "/usr/sbin")
        .entry("usr/bin/su", EntryType::Regular, 0o4755, "", b"su")
        .entry("usr/bin/sh", EntryType::Link, 0o4755, "usr/bin/su", b"")
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.note", b"a \"note\"\n"),
            ("SCHILY.xattr.security.selinux", b"label"),
        ])
        .entry("usr/bin/ping", EntryType::Regular, 0o755, "", b"ping")
        .entry("closed", EntryType::Directory, 0o000, "", b"")
        .entry("closed/secret \"x\"", EntryType::Regular, 0o000, "", b"secret")
        .entry("pipe", EntryType::Fifo, 0o622, "", b"")
        .entry("null", EntryType::Char, 0o666, "", b"")
        .dir("etc")
        .file("etc/machine-id", "0123");
    vec![low.done(), LayerMaker::new().file("etc/new", "new").done()]
}

#[test]
fn an_image_becomes_a_base_with_owners_modes_links_and_attributes() {
    if !has_e2fsprogs() {
        return;
    }
    let bench = Bench::new();
    let source = oci(&bench.image(), &a_whole_image(), gzip);
    let imported = bench.import(&source, &SMALL).unwrap();
    assert_eq!(
        (imported.devices, imported.xattrs, imported.has_shell),
        (1, 1, true)
    );
    let base = &imported.base;
    let stat = |path: &str| debugfs(base, &format!("stat \"{path}\""));
    let su = stat("/usr/bin/su");
    assert!(
        su.contains("Mode:  04755") && su.contains("User:  1000   Group: 100000"),
        "{su}"
    );
    assert!(
        su.contains("Links: 2") && su.contains("mtime: 0x5f5e1000:00000000"),
        "{su}"
    );
    let ping = stat("/usr/bin/ping");
    assert!(
        ping.contains("security.capability (20)") && ping.contains("user.note (9)"),
        "{ping}"
    );
    assert!(!ping.contains("selinux"), "{ping}");
    assert!(stat("/closed").contains("Mode:  0000"));
    let secret = stat("/closed/secret \"\"x\"\"");
    assert!(secret.contains("Type: regular    Mode:  0000"), "{secret}");
    assert!(stat("/pipe").contains("Type: FIFO    Mode:  0622"));
    assert!(stat("/null").is_empty());
    assert!(stat("/usr/sbin/init").contains(r#"Fast link dest: "/usr/lib/spore/agent""#));
    assert_eq!(debugfs(base, "cat /usr/lib/spore/agent"), "the agent");
    assert!(stat("/etc/machine-id").contains("Size: 0"));
    assert_eq!(debugfs(base, "cat /etc/new"), "new");
    assert!(stat("/").contains("Mode:  0755"));
    assert!(base.package_manager().is_none());
    let expected = ImageConfig {
        env: vec!["A=b".to_owned()],
        working_dir: Some("/srv".to_owned()),
        user: Some("app".to_owned()),
        entrypoint: vec!["/bin/x".to_owned()],
        cmd: vec!["-y".to_owned()],
    };
    assert_eq!(base.config(), &expected);
    let kept: spore_protocol::ExecDefaults =
        serde_json::from_str(&debugfs(base, "cat /etc/spore/exec.json")).unwrap();
    assert_eq!((&*kept.env["A"], kept.workdir.as_deref()), ("b", Some("/srv")));
    assert_eq!(
        (kept.user.as_deref(), kept.command),
        (Some("app"), vec!["/bin/x".to_owned(), "-y".to_owned()])
    );
    assert!(stat("/srv").contains("Type: directory"));
    // The same again is the same base, bit for bit, and nothing lies beside it.
    let digest = base.digest().unwrap();
    let first = fs::canonicalize(base.rootfs()).unwrap();
    drop(imported);
    bench.store.remove(&BaseName::parse("img").unwrap()).unwrap();
    let again = bench.import(&source, &SMALL).unwrap().base;
    assert_eq!(again.digest().unwrap(), digest);
    assert_eq!(fs::canonicalize(again.rootfs()).unwrap(), first);
    assert_eq!(bench.left().len(), 2);
}

#[test]
fn layers_may_be_plain_or_packed_with_zstd() {
    if !has_e2fsprogs() {
        return;
    }
    let plain: fn(&[u8]) -> Vec<u8> = <[u8]>::to_vec;
    for pack in [plain, |bytes| zstd::encode_all(bytes, 1).unwrap()] {
        let bench = Bench::new();
        let base = bench
            .import(&oci(&bench.image(), &a_whole_image(), pack), &SMALL)
            .unwrap()
            .base;
        assert_eq!(debugfs(&base, "cat /etc/new"), "new");
    }
}

#[test]
fn an_archive_of_docker_save_becomes_a_base() {
    if !has_e2fsprogs() {
        return;
    }
    let bench = Bench::new();
    let layers = a_whole_image();
    let config = config(&diff_ids(&layers)).to_string();
    let name = format!("{}.json", sha256(config.as_bytes()));
    let manifest =
        |layer: &str| json!([{"Config": name, "RepoTags": ["a:1"], "Layers": ["0/layer.tar", layer]}]);
    let save = |layer: &[u8]| {
        let mut archive = LayerMaker::new();
        for (name, bytes) in [
            (name.as_str(), config.as_bytes()),
            ("manifest.json", manifest("1/layer.tar").to_string().as_bytes()),
            ("0/layer.tar", &layers[0]),
            ("1/layer.tar", layer),
        ] {
            archive = archive.entry(name, EntryType::Regular, 0o644, "", bytes);
        }
        fs::write(bench.image(), archive.done()).unwrap();
    };
    let source = Source::DockerArchive(bench.image(), Some("a:1".to_owned()));
    save(&LayerMaker::new().file("etc/new", "forged").done());
    let message = bench.import(&source, &SMALL).unwrap_err().to_string();
    assert!(
        message.starts_with("layer 1 is damaged: its digest is sha256:"),
        "{message}"
    );
    assert!(bench.left().is_empty());
    save(&layers[1]);
    let base = bench.import(&source, &SMALL).unwrap().base;
    assert_eq!(debugfs(&base, "cat /etc/new"), "new");
    let other = Source::DockerArchive(bench.image(), Some("b:1".to_owned()));
    assert!(
        bench
            .import(&other, &SMALL)
            .unwrap_err()
            .to_string()
            .contains("has no such image")
    );
}

#[test]
fn a_blob_that_was_changed_is_refused_and_nothing_is_left() {
    let bench = Bench::new();
    let source = oci(&bench.image(), &a_whole_image(), gzip);
    for entry in fs::read_dir(bench.image().join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        fs::write(&path, &bad).unwrap();
        let error = bench.import(&source, &SMALL).unwrap_err();
        assert!(matches!(error, ImportError::Digest { .. }), "{error}");
        fs::write(&path, &good).unwrap();
    }
    assert!(bench.left().is_empty());
}

#[test]
fn an_image_that_unpacks_to_more_than_allowed_is_refused_however_well_it_is_packed() {
    let bench = Bench::new();
    let zeroes = "\0".repeat(2 << 20);
    let source = oci(
        &bench.image(),
        &[LayerMaker::new().file("f", &zeroes).done()],
        gzip,
    );
    let message = bench.import(&source, &SMALL).unwrap_err().to_string();
    assert!(
        message.contains("more than 1048576 bytes unpacked; "),
        "{message}"
    );
    // Nor may it hide behind the end of the archive.
    let mut behind = LayerMaker::new().file("f", "x").done();
    behind.resize(2 << 20, 0);
    let source = oci(&bench.image(), &[behind], gzip);
    assert!(matches!(
        bench.import(&source, &SMALL),
        Err(ImportError::TooMuch { .. })
    ));
    assert!(bench.left().is_empty());
}

#[test]
fn an_image_for_another_machine_or_with_another_count_of_layers_is_refused() {
    let bench = Bench::new();
    let layers = a_whole_image();
    let mut arm = config(&diff_ids(&layers));
    arm["architecture"] = json!("arm64");
    let source = oci_with(&bench.image(), &layers, gzip, arm);
    let message = bench.import(&source, &SMALL).unwrap_err().to_string();
    assert!(
        message.contains("is for linux/arm64, and guests are linux/amd64"),
        "{message}"
    );
    let source = oci_with(&bench.image(), &layers, gzip, config(&diff_ids(&layers[..1])));
    let message = bench.import(&source, &SMALL).unwrap_err().to_string();
    assert!(message.contains("has 1 layers, and the manifest 2"), "{message}");
    let elsewhere = Source::Oci(bench.image(), Some("other".to_owned()));
    let message = bench.import(&elsewhere, &SMALL).unwrap_err().to_string();
    assert!(message.contains(r#"has nothing called "other""#), "{message}");
}

#[test]
fn a_disk_that_is_too_small_is_refused_with_what_to_do() {
    let bench = Bench::new();
    let full = "x".repeat(200 << 20);
    let source = oci(&bench.image(), &[LayerMaker::new().file("f", &full).done()], gzip);
    let limits = ImportLimits {
        max_bytes: 1 << 30,
        ..SMALL
    };
    let message = bench.import(&source, &limits).unwrap_err().to_string();
    assert!(
        message.contains("too much for a disk of 256 MiB; set --disk-mb higher"),
        "{message}"
    );
    assert!(bench.left().is_empty());
}

#[test]
fn a_source_is_a_path_that_exists_and_the_rest_is_its_tag() {
    let bench = Bench::new();
    let plain = bench.directory.path().join("My.Image.tar");
    let colon = bench.directory.path().join("a:b");
    fs::write(&plain, "").unwrap();
    fs::create_dir(&colon).unwrap();
    let parse = |text: String| Source::parse(&text);
    let source = parse(format!("docker-archive:{}:repo/x:1", plain.display())).unwrap();
    assert_eq!(
        source,
        Source::DockerArchive(plain.clone(), Some("repo/x:1".to_owned()))
    );
    assert_eq!(source.suggested_name(), "my.image");
    assert_eq!(
        parse(format!("oci:{}", colon.display())).unwrap(),
        Source::Oci(colon, None)
    );
    assert!(parse("oci:/nowhere:x".to_owned()).is_err());
    assert!(parse(format!("http:{}", plain.display())).is_err());
}
