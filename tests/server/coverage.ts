// How much of a source file has run in this process, by V8's own count of blocks: shows what a fuzzer reaches.

import inspector from 'node:inspector';
import { promisify } from 'node:util';

export interface Coverage {
  /** Share of the file's functions' text that has run. */
  share: number;
  functionsMissed: string[];
}

export class CoverageMeter {
  private readonly session = new inspector.Session();
  private readonly post = promisify(this.session.post.bind(this.session)) as (
    method: string,
    parameters?: object,
  ) => Promise<unknown>;

  async start(): Promise<void> {
    this.session.connect();
    await this.post('Profiler.enable');
    await this.post('Profiler.startPreciseCoverage', { callCount: true, detailed: true });
  }

  /** Of files by their name's end, since start(). */
  async stop(names: string[]): Promise<Map<string, Coverage>> {
    const { result } = (await this.post('Profiler.takePreciseCoverage')) as {
      result: inspector.Profiler.ScriptCoverage[];
    };
    this.session.disconnect();
    const found = new Map<string, Coverage>();
    for (const name of names) {
      const script = result.find(({ url }) => url.endsWith(name));
      if (script !== undefined) found.set(name, coverageOf(script));
    }
    return found;
  }
}

/** Inner blocks come after the ones that hold them and say better. */
function coverageOf({ functions }: inspector.Profiler.ScriptCoverage): Coverage {
  const end = Math.max(...functions.flatMap(({ ranges }) => ranges.map(({ endOffset }) => endOffset)));
  const ran = new Uint8Array(end).fill(1);
  const missed: string[] = [];
  const blocks = functions.flatMap(({ ranges }) => ranges);
  blocks.sort((a, b) => a.startOffset - b.startOffset || b.endOffset - a.endOffset);
  for (const { startOffset, endOffset, count } of blocks) ran.fill(count > 0 ? 1 : 0, startOffset, endOffset);
  for (const { functionName, ranges } of functions) if (ranges[0].count === 0) missed.push(functionName);
  return { share: ran.reduce((sum, it) => sum + it, 0) / end, functionsMissed: missed };
}
