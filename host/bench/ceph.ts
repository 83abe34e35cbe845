// A real S3 engine for tests and benchmarks: Ceph with one monitor, one OSD in memory and one RADOS gateway, all on loopback, all in one folder.

import { type ChildProcess, execFile, spawn } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { Bucket, type BucketSettings } from '../store/bucket/s3.js';

export const CEPH_TOOLS = ['setpriv', 'ceph-mon', 'ceph-osd', 'radosgw', 'radosgw-admin', 'ceph', 'monmaptool'];

const run = promisify(execFile);
const ACCESS_KEY = 'ribbon-test';
const SECRET_KEY = 'not-a-secret';
const START_MS = 60_000;

export class Ceph {
  private readonly daemons: ChildProcess[] = [];
  private buckets = 0;

  private constructor(
    readonly folder: string,
    readonly port: number,
  ) {}

  static async start(): Promise<Ceph> {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-ceph-'));
    const [monitorPort, port] = await Promise.all([freePort(), freePort()]);
    const ceph = new Ceph(folder, port);
    try {
      await ceph.startDaemons(monitorPort);
    } catch (error) {
      await ceph.stop();
      throw error;
    }
    return ceph;
  }

  /** Where a new bucket of its own is. */
  async newBucket(): Promise<BucketSettings> {
    const settings = {
      url: `http://127.0.0.1:${this.port}/test-${++this.buckets}`,
      region: 'default',
      accessKeyId: ACCESS_KEY,
      secretAccessKey: SECRET_KEY,
    };
    const bucket = new Bucket(settings);
    await bucket.make();
    bucket.close();
    return settings;
  }

  /** Nothing in memory is worth a proper end, which takes seconds. */
  async stop(): Promise<void> {
    await Promise.all(
      this.daemons.map((daemon) => {
        if (daemon.exitCode !== null || daemon.signalCode !== null) return undefined;
        const ended = new Promise((resolve) => daemon.once('exit', resolve));
        daemon.kill('SIGKILL');
        return ended;
      }),
    );
    fs.rmSync(this.folder, { recursive: true, force: true });
  }

  private async startDaemons(monitorPort: number): Promise<void> {
    const { folder } = this;
    const fsid = crypto.randomUUID();
    for (const name of ['mon', 'osd', 'rgw', 'run']) fs.mkdirSync(path.join(folder, name));
    fs.writeFileSync(path.join(folder, 'ceph.conf'), configuration(folder, fsid, monitorPort, this.port));
    fs.writeFileSync(path.join(folder, 'keyring'), keyring());
    const monmap = path.join(folder, 'monmap');
    await this.tool('monmaptool', '--create', '--addv', 'a', `[v2:127.0.0.1:${monitorPort}]`, '--fsid', fsid, monmap);
    await this.tool('ceph-mon', '-i', 'a', '--mkfs', '--monmap', monmap, '--keyring', path.join(folder, 'keyring'));
    this.daemon('ceph-mon', '-i', 'a', '-f');
    const osd = crypto.randomUUID();
    fs.writeFileSync(path.join(folder, 'osd', 'whoami'), '0\n');
    await Promise.all([
      this.tool('ceph', 'osd', 'new', osd, '0'),
      this.tool('ceph-osd', '-i', '0', '--mkfs', '--osd-uuid', osd),
    ]);
    this.daemon('ceph-osd', '-i', '0', '-f');
    await until(async () => / 1 up/.test(await this.tool('ceph', 'osd', 'stat')));
    this.daemon('radosgw', '-n', 'client.rgw.a', '-f');
    const user = [
      'user',
      'create',
      '--uid=test',
      '--display-name=test',
      `--access-key=${ACCESS_KEY}`,
      `--secret=${SECRET_KEY}`,
    ];
    await this.tool('radosgw-admin', ...user);
    await until(() => canConnect(this.port));
  }

  private daemon(name: string, ...args: string[]): void {
    const output = fs.openSync(path.join(this.folder, `${name}.out`), 'w');
    // Whatever ends this process, even kill -9, ends them too.
    const daemon = spawn('setpriv', ['--pdeathsig', 'KILL', name, ...args], {
      env: this.environment(),
      stdio: ['ignore', output, output],
    });
    fs.closeSync(output);
    this.daemons.push(daemon);
  }

  private async tool(name: string, ...args: string[]): Promise<string> {
    const { stdout } = await run(name, args, { env: this.environment(), timeout: START_MS });
    return stdout;
  }

  private environment(): NodeJS.ProcessEnv {
    return { ...process.env, CEPH_CONF: path.join(this.folder, 'ceph.conf') };
  }
}

function configuration(folder: string, fsid: string, monitorPort: number, port: number): string {
  return `[global]
fsid = ${fsid}
mon_host = [v2:127.0.0.1:${monitorPort}/0]
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = ${folder}/keyring
run_dir = ${folder}/run
admin_socket = ${folder}/run/$name.asok
pid_file = ${folder}/run/$name.pid
log_file = ${folder}/$name.log
mon_cluster_log_file = ${folder}/cluster.log
crash_dir = ${folder}/crash
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
mon_data = ${folder}/mon
osd_data = ${folder}/osd
rgw_data = ${folder}/rgw
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
paxos_propose_interval = 0.05
osd_objectstore = memstore
memstore_device_bytes = 4294967296
# Without tcp_nodelay every answer waits 40 ms for the client's acknowledgement.
rgw_frontends = beast endpoint=127.0.0.1:${port} tcp_nodelay=1
`;
}

/** Keys as ceph-authtool makes them: type u16 = 1, seconds u32, nanoseconds u32, length u16 = 16, the key. */
function keyring(): string {
  const key = () => {
    const bytes = Buffer.alloc(28);
    bytes.writeUInt16LE(1);
    bytes.writeUInt32LE(Math.floor(Date.now() / 1000), 2);
    bytes.writeUInt16LE(16, 10);
    crypto.randomFillSync(bytes, 12);
    return bytes.toString('base64');
  };
  return `[mon.]
key = ${key()}
caps mon = "allow *"
[client.admin]
key = ${key()}
caps mon = "allow *"
caps osd = "allow *"
[osd.0]
key = ${key()}
caps mon = "allow profile osd"
caps osd = "allow *"
[client.rgw.a]
key = ${key()}
caps mon = "allow rw"
caps osd = "allow rwx"
`;
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = net.createServer();
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as net.AddressInfo;
      server.close(() => resolve(port));
    });
  });
}

function canConnect(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = net.connect(port, '127.0.0.1', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

async function until(holds: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + START_MS;
  while (!(await holds())) {
    if (Date.now() > deadline) throw new Error('Ceph did not start in time');
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
