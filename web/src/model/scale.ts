/** Points of a curve in the coordinates of a drawing. */

export type Point = readonly [number, number];

export interface Extent {
  left: number;
  right: number;
  low: number;
  high: number;
}

/** What a curve spans; a flat one gets some height. Points that are no numbers are left out. */
export function extentOf(points: readonly Point[]): Extent {
  const good = points.filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
  if (good.length === 0) return { left: 0, right: 1, low: 0, high: 1 };
  const xs = good.map(([x]) => x);
  const ys = good.map(([, y]) => y);
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const [low, high] = [Math.min(...ys), Math.max(...ys)];
  return {
    left,
    right: right > left ? right : left + 1,
    low,
    high: high > low ? high : low + (Math.abs(low) || 1),
  };
}

/** An SVG path through the points, in a drawing of this size. */
export function pathOf(points: readonly Point[], extent: Extent, width: number, height: number): string {
  const { left, right, low, high } = extent;
  return points
    .filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y))
    .map(([x, y], place) => {
      const across = ((x - left) / (right - left)) * width;
      const down = height - ((y - low) / (high - low)) * height;
      return `${place === 0 ? 'M' : 'L'}${across.toFixed(1)} ${down.toFixed(1)}`;
    })
    .join('');
}
