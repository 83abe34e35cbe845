// as-pect's reporter: failures in full, and one line a spec that tools/firmware-specs.ts reads:
//
//   # assembly/log.spec.ts: 6 passed, 0 failed
//
// A spec that runs no test, or marks one as "todo", fails: both look like success elsewhere.

import { type TestContext, type TestNode, VerboseReporter } from '@as-pect/core';

const TEST_NODE = 0;

class Reporter extends VerboseReporter {
  #passed = 0;
  #failed = 0;

  override onEnter(): void {}

  override onExit(_context: TestContext, node: TestNode): void {
    for (const text of node.todos) this.#fail(`${fullName(node)}: "${text}" is marked as todo`);
    if ((node.type as number) === TEST_NODE) {
      if (node.pass) this.#passed += 1;
      else {
        this.#fail(fullName(node));
        // as-pect would have it on stderr, away from the line above.
        this.stdout = process.stdout;
        this.onTestFinish(node.parent as TestNode, node);
      }
      return;
    }
    // A group counts only when it broke outside its tests: in its body, a beforeEach, an afterAll.
    if (!node.pass && node.children.every((child) => child.pass || !child.ran)) {
      this.#fail(`${fullName(node)}: ${node.message ?? 'the group broke outside its tests'}\n${node.stackTrace ?? ''}`);
    }
  }

  override onFinish(context: TestContext): void {
    for (const { type, message, stackTrace } of context.errors) this.#fail(`${type}: ${message}\n${stackTrace}`);
    if (this.#passed + this.#failed === 0) this.#fail('the file has no test');
    if (!context.pass && this.#failed === 0) this.#fail('as-pect reports a failure (a snapshot that differs?)');
    this.#write(`# ${context.fileName}: ${this.#passed} passed, ${this.#failed} failed\n`);
    this.#passed = 0;
    this.#failed = 0;
  }

  #fail(text: string): void {
    this.#failed += 1;
    this.#write(`not ok: ${text.trimEnd()}\n`);
  }

  #write(text: string): void {
    process.stdout.write(text);
  }
}

function fullName(node: TestNode): string {
  const names: string[] = [];
  for (let at: TestNode | null = node; at !== null; at = at.parent) if (at.name !== '') names.unshift(at.name);
  return names.join(' > ');
}

export default new Reporter();
