#!/usr/bin/env node
// The `ribbon` command line: one file a verb in commands/, loaded when it is called.

import { Command } from 'commander';
import * as bench from './commands/bench.js';
import * as fuzz from './commands/fuzz.js';
import * as image from './commands/image.js';
import * as serve from './commands/serve.js';
import * as sim from './commands/sim.js';
import * as soak from './commands/soak.js';
import { endWithReader, failureText } from './failure.js';

const program = new Command('ribbon')
  .description('A hard disk at the end of a very long ribbon cable.')
  .showHelpAfterError('(ribbon --help lists the commands)')
  .configureHelp({ showGlobalOptions: true });

for (const command of [sim, serve, image, bench, fuzz, soak]) command.register(program);

endWithReader();
program.parseAsync().catch((error: unknown) => {
  process.stderr.write(`ribbon: ${failureText(error)}\n`);
  process.exitCode ||= 1;
});
