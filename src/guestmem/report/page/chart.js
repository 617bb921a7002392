// The picture: SVG, drawn anew for each view. What is too small to be seen alone is drawn as one path, by counting how
// many pieces lie over each cell of a grid; so a view costs a pass over the pieces and at most some thousand elements.

const SVG = 'http://www.w3.org/2000/svg';
const chart = document.getElementById('chart');
const readout = document.getElementById('readout');
const view = {scale: 'folded', from: 0, until: 1, focus: false, raised: -1};
const LANE = 16, LANE_GAP = 4, TOP = 22, CELL = 3, MOST_BLOCKS = 3000, MOST_NAMES = 400;
let drawn = null; // what the last drawing knows: widths, places, blocks

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  return made;
}

const places = () => axes[view.scale];
const wholeWidth = () => places()[count + 1];

function layout() {
  const width = Math.max(chart.clientWidth || 1000, 260);
  const left = width < 560 ? 76 : 118;
  const raised = view.focus && transactions[current] ? current : -1;
  if (raised !== view.raised) raise(raised < 0 ? null : touchedLives(raised));
  view.raised = raised;
  const total = cuts.reduce((sum, cut) => sum + cut.height, 0) || 1;
  const height = Math.min(Math.max(150, total * 15), Math.max(240, Math.min(window.innerHeight * 0.58, 640)));
  const spaced = 20 * Math.max(0, cuts.length - 1);
  let top = TOP;
  for (const cut of cuts) {
    cut.unit = height / total;
    cut.top = top;
    cut.bottom = top + cut.height * cut.unit;
    top = cut.bottom + 20;
  }
  const lanesTop = TOP + height + spaced + 26;
  return {width, left, right: width - 8, bottom: TOP + height + spaced, lanesTop,
    all: lanesTop + data.lanes.length * (LANE + LANE_GAP) + (data.lanes.length ? 4 : -4)};
}

function touchedLives(which) {
  const found = new Set();
  for (const i of transactions[which].changes) {
    if (replaced[i] >= 0) found.add(replaced[i]);
    if (begun[i] >= 0) found.add(begun[i]);
  }
  return found;
}

// A grid over the plot. `add` counts a piece over the cells that it touches, `path` draws all cells with any.
class Grid {
  constructor(place) {
    this.place = place;
    this.columns = Math.ceil((place.right - place.left) / CELL);
    this.rows = Math.ceil((place.bottom - TOP) / CELL);
    this.cells = new Int32Array((this.columns + 1) * (this.rows + 1));
    this.any = false;
  }
  add(x0, x1, y0, y1) {
    const clamp = (value, most) => Math.min(Math.max(Math.floor(value), 0), most - 1);
    const c0 = clamp((x0 - this.place.left) / CELL, this.columns), c1 = clamp((x1 - this.place.left) / CELL, this.columns) + 1;
    const r0 = clamp((y0 - TOP) / CELL, this.rows), r1 = clamp((y1 - 0.01 - TOP) / CELL, this.rows) + 1;
    const stride = this.columns + 1;
    this.cells[r0 * stride + c0]++;
    this.cells[r0 * stride + c1]--;
    this.cells[r1 * stride + c0]--;
    this.cells[r1 * stride + c1]++;
    this.any = true;
  }
  path() {
    const stride = this.columns + 1, parts = [];
    const above = new Int32Array(stride);
    for (let row = 0; row < this.rows; row++) {
      let sum = 0, start = -1;
      for (let column = 0; column <= this.columns; column++) {
        sum += this.cells[row * stride + column];
        above[column] += sum;
        const filled = column < this.columns && above[column] > 0;
        if (filled && start < 0) start = column;
        if (!filled && start >= 0) {
          parts.push(`M${this.place.left + start * CELL} ${TOP + row * CELL}h${(column - start) * CELL}v${CELL}h${(start - column) * CELL}z`);
          start = -1;
        }
      }
    }
    return parts.join('');
  }
}

function draw() {
  const place = layout();
  const unit = (place.right - place.left) / (view.until - view.from);
  const x = at => place.left + (at - view.from) * unit;
  const clamped = at => Math.min(Math.max(x(at), place.left), place.right);
  drawn = {place, unit, x, blocks: []};
  const parts = document.createDocumentFragment();
  parts.append(patterns());
  drawSpaces(parts, place);
  drawBlocks(parts, place, clamped);
  drawHoles(parts, place, clamped);
  drawRefused(parts, place, clamped);
  drawStep(parts, place, clamped);
  drawTimes(parts, place, clamped);
  drawLanes(parts, place, clamped);
  chart.setAttribute('viewBox', `0 0 ${place.width} ${Math.ceil(place.all)}`);
  chart.setAttribute('height', Math.ceil(place.all));
  chart.replaceChildren(parts);
}

function patterns() {
  const defs = element('defs', {});
  for (const [id, className, step] of [['hatch', 'hatch', 6], ['unknown-hatch', 'unknown-line', 7], ['outside-hatch', 'nothing-line', 5]]) {
    const pattern = element('pattern', {id, width: step, height: step, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)'});
    pattern.append(element('line', {class: className, x1: 0, y1: 0, x2: 0, y2: step}));
    defs.append(pattern);
  }
  return defs;
}

function drawSpaces(parts, place) {
  for (const cut of cuts) {
    parts.append(element('rect', {class: 'plot', x: place.left, y: cut.top, width: place.right - place.left, height: cut.bottom - cut.top}));
    if (cuts.length > 1) parts.append(element('text', {class: 'space', x: place.right, y: cut.top - 5, 'text-anchor': 'end'}, `address space ${cut.space}`));
    let written = -Infinity, folds = 0;
    for (let i = 0; i < cut.edges.length; i++) {
      const at = cut.top + cut.places[i] * cut.unit;
      if (i + 1 < cut.edges.length && !cut.used[i] && cut.unit * (cut.places[i + 1] - cut.places[i]) > 3 && folds++ < 200) {
        const height = cut.unit * (cut.places[i + 1] - cut.places[i]);
        parts.append(element('rect', {class: 'fold', x: place.left, y: at, width: place.right - place.left, height}));
      }
      const last = i === cut.edges.length - 1;
      if (at - written >= 12 && (last || cut.bottom - at >= 12 || i === 0)) {
        parts.append(element('text', {class: 'address', x: place.left - 6, y: at + 4, 'text-anchor': 'end'}, hex(cut.edges[i])));
        written = at;
      }
    }
  }
}

// The rectangles of a view in four columns, and which piece each is; made once, filled anew for each view.
class Rectangles {
  constructor(most) {
    this.which = new Int32Array(most);
    for (const name of ['x0', 'x1', 'y0', 'y1']) this[name] = new Float64Array(most);
    this.areas = new Int32Array(64); // how many have an area of 2^n
    this.size = 0;
  }
  clear() {
    this.size = 0;
    this.areas.fill(0);
  }
  add(which, x0, x1, y0, y1) {
    const i = this.size++;
    this.which[i] = which;
    this.x0[i] = x0;
    this.x1[i] = x1;
    this.y0[i] = y0;
    this.y1[i] = y1;
    this.areas[31 - Math.clz32((x1 - x0) * (y1 - y0))]++;
  }
  // The least power of two so that at most `most` rectangles have such an area.
  cutoff(most) {
    let bits = 31, sum = 0;
    while (bits >= 0 && sum + this.areas[bits] <= most) sum += this.areas[bits--];
    return bits;
  }
  isBelow(i, bits) {
    return 31 - Math.clz32((this.x1[i] - this.x0[i]) * (this.y1[i] - this.y0[i])) <= bits;
  }
  path(i) {
    return rectanglePath(this.x0[i], this.x1[i], this.y0[i], this.y1[i]);
  }
}
const tenth = value => Math.round(value * 10) / 10;
function rectanglePath(x0, x1, y0, y1) {
  const left = tenth(x0), top = tenth(y0), width = tenth(x1 - left), height = tenth(y1 - top);
  return `M${left} ${top}h${width}v${height}h${-width}z`;
}
const blockRectangles = new Rectangles(lives.from.length), holeRectangles = new Rectangles(gaps.hole.length);

function drawBlocks(parts, place, clamped) {
  const axisPlaces = places(), shown = blockRectangles, bundle = new Grid(place);
  shown.clear();
  drawn.bundled = 0;
  for (let life = 0; life < lives.from.length; life++) {
    const from = axisPlaces[lives.from[life] + 1];
    const until = untilPlace(lives.until[life], axisPlaces);
    if (until < view.from || from > view.until) continue;
    const cut = cuts[lives.cut[life]];
    const x0 = clamped(from), x1 = clamped(until);
    const y0 = cut.top + cut.places[lives.low[life]] * cut.unit, y1 = cut.top + cut.places[lives.high[life]] * cut.unit;
    if (x1 - x0 >= 2 && y1 - y0 >= 2) shown.add(life, x0, x1, y0, y1);
    else if (until > from) {
      bundle.add(x0, x1, y0, y1);
      drawn.bundled++;
    }
  }
  const cutoff = shown.cutoff(MOST_BLOCKS);
  const paths = hosts.length ? Array.from({length: 8}, () => []) : [], readonly = [], names = [];
  for (let i = 0; i < shown.size; i++) {
    const x0 = shown.x0[i], x1 = shown.x1[i], y0 = shown.y0[i], y1 = shown.y1[i];
    if (shown.isBelow(i, cutoff)) {
      bundle.add(x0, x1, y0, y1);
      drawn.bundled++;
      continue;
    }
    const life = shown.which[i], path = shown.path(i);
    drawn.blocks.push([life, x0, x1, y0, y1]);
    paths[hosts[lives.piece[life]].colour].push(path);
    if (lives.flags[life] & READONLY) readonly.push(path);
    if (x1 - x0 > 18 && y1 - y0 > 11 && names.length < MOST_NAMES) {
      const name = slotName(lives.space[life], lives.slot[life]);
      const flags = flagWords(lives.flags[life]);
      const long = `slot ${name}${flags ? ' · ' + flags : ''}`;
      const text = x1 - x0 > long.length * 6.7 + 8 ? long : x1 - x0 > name.length * 7 + 6 ? name : '';
      if (text) names.push(element('text', {class: 'name', x: tenth(x0 + 4), y: tenth(Math.min((y0 + y1) / 2 + 4, y1 - 3))}, text));
    }
  }
  if (bundle.any) parts.append(element('path', {class: 'bundle', d: bundle.path()}));
  paths.forEach((each, colour) => {
    if (each.length) parts.append(element('path', {class: `block host${colour}`, d: each.join('')}));
  });
  if (readonly.length) parts.append(element('path', {class: 'readonly', d: readonly.join('')}));
  parts.append(...names);
}

function drawHoles(parts, place, clamped) {
  const axisPlaces = places(), shown = holeRectangles;
  const grids = VERDICTS.map(() => new Grid(place)), paths = VERDICTS.map(() => []);
  shown.clear();
  for (let gap = 0; gap < gaps.hole.length; gap++) {
    const from = axisPlaces[gaps.from[gap] + 1], until = axisPlaces[gaps.until[gap] + 1];
    if (until < view.from || from > view.until) continue;
    const cut = cuts[gaps.cut[gap]];
    const x0 = clamped(from), x1 = clamped(until), y0 = cut.top + cut.places[gaps.low[gap]] * cut.unit;
    const y1 = Math.max(cut.top + cut.places[gaps.high[gap]] * cut.unit, y0 + 1.5);
    if (x1 - x0 >= 4) shown.add(gap, x0, x1, y0, y1);
    else grids[gaps.verdict[gap]].add(x0, x1, y0, y1); // a cell wide: never so thin that it is not seen
  }
  const cutoff = shown.cutoff(MOST_BLOCKS);
  const largest = new Map(); // of each hole that is drawn singly: its largest rectangle
  for (let i = 0; i < shown.size; i++) {
    const gap = shown.which[i], verdict = gaps.verdict[gap];
    if (shown.isBelow(i, cutoff)) {
      grids[verdict].add(shown.x0[i], shown.x1[i], shown.y0[i], shown.y1[i]);
      continue;
    }
    paths[verdict].push(shown.path(i));
    const area = (shown.x1[i] - shown.x0[i]) * (shown.y1[i] - shown.y0[i]);
    if (!(largest.get(gaps.hole[gap])?.area >= area)) largest.set(gaps.hole[gap], {i, area});
  }
  VERDICTS.forEach((verdict, k) => {
    if (grids[k].any) parts.append(element('path', {class: `holes ${verdict}`, d: grids[k].path()}));
    if (paths[k].length) parts.append(element('path', {class: `hole ${verdict}`, d: paths[k].join('')}));
  });
  let named = 0;
  for (const [which, {i}] of largest) {
    if (shown.y1[i] - shown.y0[i] <= 13 || named > MOST_NAMES) continue;
    const hole = holes[which], width = shown.x1[i] - shown.x0[i];
    const choices = [`${hole.verdict}, ${holeDuration(hole)}: ${hole.reason}`, `${hole.verdict}, ${holeDuration(hole)}`, hole.verdict];
    const text = choices.find(each => width > each.length * 6.9 + 8);
    if (!text) continue;
    parts.append(element('text', {class: `verdict-name ${hole.verdict}`, x: tenth(shown.x0[i] + 4), y: tenth(shown.y0[i] + 12)}, text));
    named++;
  }
}

function drawRefused(parts, place, clamped) {
  const axisPlaces = places();
  let marked = -Infinity;
  for (const [i] of changes.refused) {
    const at = axisPlaces[i + 1];
    if (at < view.from || at > view.until || clamped(at) - marked < 5) continue;
    marked = clamped(at);
    parts.append(element('text', {class: 'refused', x: marked, y: place.bottom + 10, 'text-anchor': 'middle'}, '×'));
  }
}

function stepSpan(which) {
  const mine = transactions[which].changes;
  return [changePlace(mine[0], places()), changePlace(mine[mine.length - 1], places())];
}

function drawStep(parts, place, clamped) {
  if (!transactions[current]) return;
  const [from, until] = stepSpan(current);
  if (until < view.from || from > view.until) return;
  const x0 = clamped(from) - 2, x1 = clamped(until) + 2;
  parts.append(element('rect', {class: 'step', x: x0, y: TOP - 6, width: x1 - x0, height: place.all - TOP + 4}));
  parts.append(element('path', {class: 'step-mark', d: `M${(x0 + x1) / 2 - 5} ${TOP - 12}h10l-5 7z`}));
}

function drawTimes(parts, place, clamped) {
  const axisPlaces = places();
  const least = place.width < 560 ? 64 : 84;
  const ticks = [];
  let written = -Infinity;
  for (let i = before(axisPlaces, view.from); i < count && axisPlaces[i + 1] <= view.until;) {
    const x = clamped(axisPlaces[i + 1]);
    const begins = i === 0 || changes.transaction[i] !== changes.transaction[i - 1];
    if (begins && axisPlaces[i + 1] >= view.from) {
      ticks.push(`M${tenth(x)} ${place.bottom}v4`);
      if (x - written >= least && x <= place.right - 52) {
        parts.append(element('text', {class: 'time', x: tenth(x), y: place.bottom + 16}, data.timed ? moment(changes.ns[i]) : `line ${changes.line[i]}`));
        written = x;
      }
    }
    // The next tick is some pixels on.
    i = begins ? Math.max(i + 1, before(axisPlaces, axisPlaces[i + 1] + 3 / drawn.unit)) : i + 1;
  }
  parts.append(element('path', {class: 'tick', d: ticks.join('')}));
}

function drawLanes(parts, place, clamped) {
  data.lanes.forEach((lane, row) => {
    const top = place.lanesTop + row * (LANE + LANE_GAP);
    const short = lane.name.replace(/ \(.*/, '').replace(/^vCPU thread /, 'thread ');
    parts.append(element('text', {class: 'address', x: place.left - 6, y: top + 12, 'text-anchor': 'end'}, short));
    parts.append(element('rect', {class: 'lane-unknown', x: place.left, y: top, width: place.right - place.left, height: LANE}));
    drawPieces(parts, place, lane, top);
  });
}

// A lane by columns of the screen: in each, where the vCPU was, or that it was in several places; alike ones are one.
const WHERE = {g: 'guest', r: 'run', k: 'kvm', u: 'outside', '?': '', m: 'several'};
function drawPieces(parts, place, lane, top) {
  const edges = lane.places[view.scale];
  const columns = Math.ceil(place.right - place.left);
  const seen = new Array(columns).fill(undefined);
  for (let i = before(edges, view.from); i < lane.where.length && edges[i] <= view.until; i++) {
    const x0 = (edges[i] - view.from) * drawn.unit, x1 = (edges[i + 1] - view.from) * drawn.unit;
    if (x1 < 0 || x1 <= x0) continue;
    const first = Math.max(Math.floor(x0), 0), last = Math.min(Math.ceil(x1), columns);
    const where = lane.where[i];
    for (let c = first; c < last; c++) {
      const whole = x0 <= c && x1 >= c + 1;
      if (whole || seen[c] === undefined || seen[c] === where) seen[c] = where;
      else if (seen[c] === '?' || where === '?') seen[c] = '?'; // never hide that something is not known
      else seen[c] = 'm';
    }
  }
  const paths = {};
  for (let c = 0, start = 0; c <= columns; c++) {
    if (c < columns && seen[c] === seen[start]) continue;
    const name = WHERE[seen[start]];
    if (name) (paths[name] ??= []).push(`M${place.left + start} ${top}h${c - start}v${LANE}h${start - c}z`);
    start = c;
  }
  for (const name in paths) parts.append(element('path', {class: `lane-${name}`, d: paths[name].join('')}));
}
