//! What the layers together say a file system is.
//!
//! A model in memory: names in an archive only ever name nodes of it, and never files of the host. So an
//! archive has nothing to escape from, whatever its names, links and their order are. The contents of files
//! lie in a directory of numbered files.
//!
//! Whiteouts follow the OCI image specification, "Image Layer Filesystem Changeset": they remove what lower
//! layers have, and nothing of their own layer.

use std::collections::BTreeMap;

/// The longest path of an entry, in bytes: with a directory before it, it still is a path on the host.
const MAX_PATH: usize = 3000;
/// ext4's longest name, in bytes.
const MAX_NAME: usize = 255;
/// How many links in a row are followed.
const MAX_LINKS: usize = 40;

/// A node's place in the tree's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub usize);

/// The root directory.
pub const ROOT: NodeId = NodeId(0);

/// What is known of every file, directory and link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits, up to 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Extended attributes that are kept.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Meta {
    /// Root's, without attributes.
    pub fn new(mode: u32, mtime: u64) -> Meta {
        Meta {
            mode,
            uid: 0,
            gid: 0,
            mtime,
            xattrs: BTreeMap::new(),
        }
    }
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory(BTreeMap<Vec<u8>, Child>),
    /// A file, with the number of its content and its size in bytes.
    File {
        /// Which content.
        content: u64,
        /// How long.
        bytes: u64,
    },
    /// A symbolic link. Nobody follows it on this host.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
}

/// An entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// What it names.
    pub node: NodeId,
    /// The layer that put it there.
    pub layer: usize,
}

/// A file, directory or link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// What is known of it.
    pub meta: Meta,
}

/// The file system.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    /// The time of what nobody mentions.
    epoch: u64,
}

/// An archive's name for an entry, as the components it has. Empty is the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPath(Vec<Vec<u8>>);

impl EntryPath {
    /// Takes a name apart; one from the root is one below it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(name: &[u8]) -> Result<EntryPath, String> {
        if name.len() > MAX_PATH {
            return Err(format!("its name is longer than {MAX_PATH} bytes"));
        }
        let mut parts = Vec::new();
        for part in name.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err("it has `..` in its name".to_owned()),
                _ if part.len() > MAX_NAME => {
                    return Err(format!("a name in it is longer than {MAX_NAME} bytes"));
                }
                // Nor could debugfs be told of it.
                _ if part.iter().any(|byte| matches!(byte, 0 | b'\n' | b'\r')) => {
                    return Err("it has a line break in its name".to_owned());
                }
                _ => parts.push(part.to_vec()),
            }
        }
        Ok(EntryPath(parts))
    }

    /// The directory and the name in it; `None` for the root.
    pub fn split(&self) -> Option<(&[Vec<u8>], &[u8])> {
        self.0
            .split_last()
            .map(|(name, parents)| (parents, name.as_slice()))
    }
}

impl Tree {
    /// An empty root directory; what is not said to be of another time is of `epoch`.
    pub fn new(epoch: u64) -> Tree {
        let root = Node {
            kind: Kind::Directory(BTreeMap::new()),
            meta: Meta::new(0o755, epoch),
        };
        Tree {
            nodes: vec![root],
            epoch,
        }
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    fn children(&self, id: NodeId) -> Option<&BTreeMap<Vec<u8>, Child>> {
        match &self.nodes[id.0].kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn children_mut(&mut self, id: NodeId) -> Option<&mut BTreeMap<Vec<u8>, Child>> {
        match &mut self.nodes[id.0].kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn child(&self, directory: NodeId, name: &[u8]) -> Option<Child> {
        self.children(directory)?.get(name).copied()
    }

    fn attach(&mut self, directory: NodeId, name: &[u8], child: Child) {
        if let Some(children) = self.children_mut(directory) {
            children.insert(name.to_vec(), child);
        }
    }

    fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        NodeId(self.nodes.len() - 1)
    }

    /// The directory with these names, made where it is missing.
    ///
    /// # Errors
    /// If one of them is something else. A link on the way is refused too: no layer that a tool made from a
    /// file system has that, and where it leads is not for the archive to say.
    pub fn parent(&mut self, parts: &[Vec<u8>], layer: usize) -> Result<NodeId, String> {
        let mut at = ROOT;
        for part in parts {
            at = match self.child(at, part) {
                Some(child) => match &self.node(child.node).kind {
                    Kind::Directory(_) => child.node,
                    Kind::Symlink(_) => {
                        return Err(format!("{:?} on the way is a link", lossy(part)));
                    }
                    _ => return Err(format!("{:?} on the way is no directory", lossy(part))),
                },
                None => self.make_directory(at, part, layer),
            };
        }
        Ok(at)
    }

    fn make_directory(&mut self, at: NodeId, name: &[u8], layer: usize) -> NodeId {
        let node = self.add(Node {
            kind: Kind::Directory(BTreeMap::new()),
            meta: Meta::new(0o755, self.epoch),
        });
        self.attach(at, name, Child { node, layer });
        node
    }

    /// Puts a node there, instead of what is there. A directory over a directory keeps what is in it.
    ///
    /// # Errors
    /// As [`Tree::parent`], and for a root that is no directory.
    pub fn put(&mut self, path: &EntryPath, node: Node, layer: usize) -> Result<(), String> {
        let Some((parents, name)) = path.split() else {
            return match node.kind {
                Kind::Directory(_) => {
                    self.nodes[ROOT.0].meta = node.meta;
                    Ok(())
                }
                _ => Err("the root is a directory".to_owned()),
            };
        };
        let parent = self.parent(parents, layer)?;
        if let (Kind::Directory(_), Some(old)) = (&node.kind, self.child(parent, name))
            && self.children(old.node).is_some()
        {
            self.nodes[old.node.0].meta = node.meta;
            self.attach(
                parent,
                name,
                Child {
                    node: old.node,
                    layer,
                },
            );
            return Ok(());
        }
        let node = self.add(node);
        self.attach(parent, name, Child { node, layer });
        Ok(())
    }

    /// Another name for a file that is there.
    ///
    /// # Errors
    /// If it is not there, or a directory; and as [`Tree::parent`].
    pub fn link(&mut self, path: &EntryPath, target: &EntryPath, layer: usize) -> Result<(), String> {
        let missing = || "it is a link to a file that is not there".to_owned();
        let (parents, name) = target.split().ok_or_else(missing)?;
        let mut at = ROOT;
        for part in parents {
            at = self.child(at, part).ok_or_else(missing)?.node;
            if matches!(self.node(at).kind, Kind::Symlink(_)) {
                return Err(format!("its target leads through the link {:?}", lossy(part)));
            }
        }
        let node = self.child(at, name).ok_or_else(missing)?.node;
        if self.children(node).is_some() {
            return Err("it is a hard link to a directory".to_owned());
        }
        let (parents, name) = path.split().ok_or("the root is a directory")?;
        let parent = self.parent(parents, layer)?;
        self.attach(parent, name, Child { node, layer });
        Ok(())
    }

    /// Removes what lower layers have of this name, if there is anything.
    ///
    /// # Errors
    /// As [`Tree::parent`].
    pub fn whiteout(&mut self, parents: &[Vec<u8>], name: &[u8], layer: usize) -> Result<(), String> {
        let parent = self.parent(parents, layer)?;
        if let Some(child) = self.child(parent, name)
            && self.remove_below(child, layer)
            && let Some(children) = self.children_mut(parent)
        {
            children.remove(name);
        }
        Ok(())
    }

    /// Removes what lower layers have in this directory.
    ///
    /// # Errors
    /// As [`Tree::parent`].
    pub fn opaque(&mut self, directory: &[Vec<u8>], layer: usize) -> Result<(), String> {
        let node = self.parent(directory, layer)?;
        self.remove_below(Child { node, layer }, layer);
        Ok(())
    }

    /// Removes what is of lower layers in `child`; whether it is to go itself.
    fn remove_below(&mut self, child: Child, layer: usize) -> bool {
        let Some(children) = self.children(child.node) else {
            return child.layer < layer;
        };
        let inside: Vec<_> = children
            .iter()
            .map(|(name, child)| (name.clone(), *child))
            .collect();
        let mut kept = inside.len();
        for (name, inner) in inside {
            if self.remove_below(inner, layer) {
                kept -= 1;
                if let Some(children) = self.children_mut(child.node) {
                    children.remove(&name);
                }
            }
        }
        kept == 0 && child.layer < layer
    }

    /// What a path names in a guest: links are followed, from the tree's root.
    pub fn find(&self, path: &str) -> Option<NodeId> {
        let mut left: Vec<Vec<u8>> = split_reversed(path.as_bytes());
        let mut trail = vec![ROOT];
        let mut links = 0;
        while let Some(part) = left.pop() {
            let here = *trail.last().unwrap_or(&ROOT);
            match part.as_slice() {
                b"." | b"" => {}
                b".." => {
                    if trail.len() > 1 {
                        trail.pop();
                    }
                }
                name => {
                    let node = self.child(here, name)?.node;
                    if let Kind::Symlink(target) = &self.node(node).kind {
                        links += 1;
                        if links > MAX_LINKS {
                            return None;
                        }
                        if target.starts_with(b"/") {
                            trail.truncate(1);
                        }
                        left.extend(split_reversed(target));
                    } else {
                        trail.push(node);
                    }
                }
            }
        }
        trail.last().copied()
    }

    /// The directory a path names in a guest; what is missing of it is made.
    ///
    /// # Errors
    /// If something else is there.
    pub fn directory(&mut self, path: &str, mode: u32, layer: usize) -> Result<NodeId, String> {
        if let Some(found) = self.find(path) {
            return match self.children(found) {
                Some(_) => Ok(found),
                None => Err(format!("{path} is no directory")),
            };
        }
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = self.directory(above, 0o755, layer)?;
        if self.child(parent, name.as_bytes()).is_some() {
            return Err(format!("{path} is a link that leads nowhere"));
        }
        let made = self.make_directory(parent, name.as_bytes(), layer);
        self.nodes[made.0].meta.mode = mode;
        Ok(made)
    }

    /// Puts a node into a directory, instead of whatever has its name.
    pub fn replace(&mut self, directory: NodeId, name: &str, node: Node, layer: usize) {
        let node = self.add(node);
        self.attach(directory, name.as_bytes(), Child { node, layer });
    }
}

fn split_reversed(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .rev()
        .map(<[u8]>::to_vec)
        .collect()
}

/// A name for an error message.
pub fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(200).collect()
}
