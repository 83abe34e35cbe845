// What a benchmark measures and how it is shown: one row a figure, a ratio against the named peer of the same run.

export interface BenchOptions {
  /** Shorter, for a test that the benchmark works; its figures are noisier. */
  quick: boolean;
}

export interface Figure {
  name: string;
  value: number;
  unit: string;
  /** What it was measured against in the same run. */
  peer?: { name: string; value: number };
  /** Of the ratios of single rounds; without it the ratio is that of the values. */
  ratio?: { median: number; least: number; most: number };
  /** The least acceptable ratio to the peer, or the least (`atMost`: the greatest) acceptable value when there is no peer. */
  bar?: number;
  atMost?: boolean;
}

export interface Benchmark {
  title: string;
  run(options: BenchOptions, onProgress: (text: string) => void): Promise<Figure[]>;
}

/** The figure's ratio to its peer, its value when it has none. */
export function measured(figure: Figure): number {
  return figure.ratio?.median ?? (figure.peer === undefined ? figure.value : figure.value / figure.peer.value);
}

/** True when the figure has no bar or meets it. */
export function meetsBar(figure: Figure): boolean {
  if (figure.bar === undefined) return true;
  return figure.atMost === true ? measured(figure) <= figure.bar : measured(figure) >= figure.bar;
}

export function formatFigures(figures: Figure[]): string {
  const rows = figures.map((figure) => [
    figure.name,
    `${formatNumber(figure.value)} ${figure.unit}`,
    figure.peer === undefined ? '' : `${figure.peer.name} ${formatNumber(figure.peer.value)} ${figure.unit}`,
    figure.peer === undefined ? '' : `${measured(figure).toFixed(2)} x`,
    figure.ratio === undefined ? '' : `${figure.ratio.least.toFixed(2)}-${figure.ratio.most.toFixed(2)}`,
    figure.bar === undefined ? '' : `${figure.atMost === true ? '<=' : '>='} ${figure.bar}`,
    figure.bar === undefined ? '' : meetsBar(figure) ? 'ok' : 'MISSED',
  ]);
  rows.unshift(['figure', 'ribbon', 'peer', 'ratio', 'rounds', 'bar', '']);
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column]))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

function formatNumber(value: number): string {
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString('en-US');
  return value.toPrecision(3);
}
