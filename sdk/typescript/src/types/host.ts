/**
 * The host.
 *
 * @module
 */

/** Versions. */
export interface Versions {
  /** Of the daemon. */
  spore: string;
  /** Of the API. */
  api: string;
  /** Of the host's kernel. */
  kernel: string;
  /** BLAKE3 of the guest kernel's file; absent if there is none. */
  guestKernel?: string;
}

/** Memory, and what of it is promised. */
export interface Capacity {
  /** The host's memory. */
  totalMB: number;
  /** What its kernel would give now (MemAvailable). */
  availableMB: number;
  /** Kept for the host itself. */
  reserveMB: number;
  /** What may be promised in all: (total - reserve) times the overcommit. */
  limitMB: number;
  /** What is promised: the granted memory of all sandboxes and running builds. */
  committedMB: number;
  /** Of that, what is plugged beyond floors. */
  pluggedMB: number;
  /** What VM processes have resident and do not share. */
  uniqueMB: number;
  /** By how much memory is promised more than once. */
  overcommit: number;
  /** The largest sandbox that would be admitted now. */
  largestFitMB: number;
}

/** Pressure stall information, in percent of the last 10 s. */
export interface Pressure {
  /** Some task waited for memory. */
  memorySome: number;
  /** All tasks did. */
  memoryFull: number;
  /** Some task waited for a processor. */
  cpuSome: number;
  /** Some task waited for input or output. */
  ioSome: number;
}

/** The host. */
export interface HostInfo {
  /** Whether new sandboxes and builds are refused. */
  draining: boolean;
  /** Memory. */
  memory: Capacity;
  /** Pressure; absent where the kernel does not tell. */
  pressure?: Pressure;
  /** Processors. */
  cpus: number;
  /** Load averages of 1, 5 and 15 minutes. */
  load: number[];
  /** The data directory: its absolute path without symbolic links. */
  dataDir: string;
  /** Size of the file system with the data directory. */
  diskTotalBytes: number;
  /** What is free of it. */
  diskFreeBytes: number;
  /** Sandboxes. */
  sandboxes: number;
  /** The most there may be. */
  maxSandboxes: number;
  /** Builds that are running. */
  builds: number;
  /** The most at once. */
  maxBuilds: number;
  /** Commands that run, in all sandboxes. */
  execs: number;
  /** The most at once. */
  maxExecs: number;
  /** Ids of the images that are here. */
  images: string[];
  /** Ids of the checkpoints that are here. */
  checkpoints: string[];
  /** Templates that are loaded. */
  templates: number;
  /** Shells that are armed. */
  shells: number;
  /** The kind of KVM: `hardware`, or `software` where that is known. */
  kvm: string;
  /** What VM processes are confined by, and what this host lacks for it. */
  confinement: string[];
  /** Versions. */
  versions: Versions;
  /** When the daemon was started. */
  startedAt: number;
}

/** Whether the host takes new work. */
export interface Drain {
  /** Whether new sandboxes and builds are refused. */
  draining: boolean;
}
