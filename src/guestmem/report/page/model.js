// What the data mean: the slots that there were, by following the changes as KVM did, and the two axes.

const data = JSON.parse(document.getElementById('data').textContent);
const changes = data.changes;
const count = changes.slot.length;
const PAGE_SHIFT = 12;
const READONLY = 2, LOG = 1, GUEST_MEMFD = 4;
const implied = new Set(data.changes.implied);
const refusal = new Map(data.changes.refused);

// Lives: stretches of changes [from, until) in which a slot was as it was. A change of flags ends one and begins one.
// Slots that are assumed to have been there before the trace began live from -1 on.
const ASSUMED = -1, NO_NUMBER = -1;
const lives = {from: [], until: [], space: [], slot: [], gfn: [], pages: [], host: [], flags: []};
const replaced = new Int32Array(count).fill(-1); // by change: the life that it ended
const begun = new Int32Array(count).fill(-1); // by change: the life that it began

(function follow() {
  const now = new Map();
  for (const [told, space, slot, gfn, pages, host, flags] of data.assumed) {
    if (told >= 0) now.set(space * 65536 + slot, lives.from.length);
    for (const [name, value] of Object.entries({from: ASSUMED, until: count, space, slot, gfn, pages, host, flags})) lives[name].push(value);
  }
  for (let i = 0; i < count; i++) {
    const kind = changes.kind[i];
    if (kind === 'r' || kind === 'n') continue;
    const key = changes.space[i] * 65536 + changes.slot[i];
    const old = now.get(key);
    if (old !== undefined) {
      lives.until[old] = i;
      replaced[i] = old;
      now.delete(key);
    }
    if (kind === 'd') continue;
    const life = lives.from.length;
    lives.from.push(i);
    lives.until.push(count);
    for (const name of ['space', 'slot', 'gfn', 'pages', 'host', 'flags']) lives[name].push(changes[name][i]);
    now.set(key, life);
    begun[i] = life;
  }
  for (const name of ['from', 'until', 'space', 'slot', 'flags']) lives[name] = Int32Array.from(lives[name]);
  for (const name of ['gfn', 'pages', 'host']) lives[name] = Float64Array.from(lives[name]);
})();

// Transactions: their changes, and the hole that each made, if any.
const transactions = [];
for (let i = 0; i < count; i++) {
  const which = changes.transaction[i];
  if (which >= 0) (transactions[which] ??= {changes: [], holes: []}).changes.push(i);
}

// Holes: from columns to objects; and their ranges as columns, which are what is drawn.
const VERDICTS = ['closed', 'unknown', 'open'];
const holes = data.holes.transaction.map((transaction, i) => {
  const columns = data.holes;
  let from = count, until = 0;
  for (const range of columns.ranges[i]) {
    from = Math.min(from, range[2]);
    until = Math.max(until, range[3]);
  }
  transactions[transaction]?.holes.push(i);
  return {
    transaction, from, until, space: columns.space[i], verdict: columns.verdict[i], seconds: columns.seconds[i],
    bytes: columns.bytes[i], reason: columns.reasons[columns.reason[i]], rule: columns.rules[columns.rule[i]], same: columns.same[i], ranges: columns.ranges[i],
    sets: columns.sets[i].map(([primitives, changes]) => ({changes, primitives: primitives.map(each => columns.primitives[each])})),
  };
});
const gaps = {};
(function columnsOfHoles() {
  const size = holes.reduce((sum, hole) => sum + hole.ranges.length, 0);
  for (const name of ['hole', 'from', 'until', 'low', 'high', 'cut', 'verdict']) gaps[name] = new Int32Array(size);
  gaps.gfn = new Float64Array(size);
  gaps.pages = new Float64Array(size);
  let at = 0;
  holes.forEach((hole, i) => {
    for (const [gfn, pages, removed, restored] of hole.ranges) {
      gaps.hole[at] = i;
      gaps.from[at] = removed;
      gaps.until[at] = restored;
      gaps.gfn[at] = gfn;
      gaps.pages[at] = pages;
      gaps.verdict[at++] = VERDICTS.indexOf(hole.verdict);
    }
  });
})();

// Hosts: slots whose host memory touches are one piece of it, and have one colour.
const hosts = [];
(function joinHosts() {
  const order = [...lives.from.keys()].sort((a, b) => lives.host[a] - lives.host[b]);
  lives.piece = new Int32Array(order.length);
  for (const life of order) {
    const start = lives.host[life], end = start + lives.pages[life];
    const last = hosts[hosts.length - 1];
    if (last && start <= last.end) last.end = Math.max(last.end, end);
    else hosts.push({start, end});
    lives.piece[life] = hosts.length - 1;
  }
  const bySize = [...hosts.keys()].sort((a, b) => (hosts[b].end - hosts[b].start) - (hosts[a].end - hosts[a].start));
  bySize.forEach((piece, rank) => { hosts[piece].colour = rank % 8; });
  hosts.bySize = bySize;
})();

// Time. Edge k of the axis is before change k; edge 0 and edge count + 1 are where the trace's knowledge begins and ends.
const times = (function () {
  const result = new Float64Array(count + 2);
  if (!data.timed || !count) return result.map((_, i) => i);
  let latest = -Infinity;
  for (let i = 0; i < count; i++) {
    latest = Math.max(latest, changes.ns[i]);
    result[i + 1] = latest;
  }
  let first = result[1], last = latest;
  for (const lane of data.lanes) {
    first = Math.min(first, lane.edges[0]);
    last = Math.max(last, lane.edges[lane.edges.length - 1]);
  }
  result[0] = first;
  result[count + 1] = last;
  return result;
})();

const FOLD_NS = 20000; // pauses much longer than this are folded: twice as long is one step wider
function axis(trueToScale) {
  const places = new Float64Array(count + 2);
  const least = (times[count + 1] - times[0]) * 1e-9 || 1;
  for (let k = 1; k < count + 2; k++) {
    const pause = times[k] - times[k - 1];
    const edge = k === 1 || k === count + 1;
    const folded = data.timed ? (edge && !pause ? 0.5 : 1 + Math.log2(1 + pause / FOLD_NS)) : 1;
    places[k] = places[k - 1] + (trueToScale ? Math.max(pause, least) : folded);
  }
  return places;
}
const axes = {folded: axis(false), scaled: data.timed ? axis(true) : null};

// The last index of sorted `values` whose value is not above `value`, at least 0.
function before(values, value) {
  let low = 0, high = values.length;
  while (low + 1 < high) {
    const middle = (low + high) >> 1;
    if (values[middle] <= value) low = middle;
    else high = middle;
  }
  return low;
}

// Where a time lies on an axis: between the changes beside it.
function placeOf(ns, places) {
  const k = Math.min(before(times, ns), count);
  const pause = times[k + 1] - times[k];
  const part = pause > 0 ? Math.min(Math.max((ns - times[k]) / pause, 0), 1) : 0;
  return places[k] + part * (places[k + 1] - places[k]);
}
const changePlace = (i, places) => places[i + 1];
const untilPlace = (i, places) => i >= count ? places[count + 1] : places[i + 1];

// vCPU lanes: their edges on each axis.
for (const lane of data.lanes) {
  lane.places = {};
  for (const [name, places] of Object.entries(axes)) {
    if (places) lane.places[name] = Float64Array.from(lane.edges, ns => placeOf(ns, places));
  }
}

// Addresses. Each space is cut wherever a slot begins or ends; stretches without memory are folded, and stretches with
// memory are as high as the logarithm of their size tells, so that 4 KiB and 4 GiB are both seen.
const FOLD_HEIGHT = 0.7, UNWANTED_HEIGHT = 0.15;
const spaceNumbers = [...new Set(lives.space)].sort((a, b) => a - b);
const cuts = spaceNumbers.map(space => {
  let size = 0, many = 0;
  const mine = [];
  for (let life = 0; life < lives.from.length; life++) if (lives.space[life] === space) mine.push(life);
  const all = new Float64Array(2 * mine.length);
  for (const life of mine) {
    all[many++] = lives.gfn[life];
    all[many++] = lives.gfn[life] + lives.pages[life];
  }
  all.sort();
  for (let i = 0; i < many; i++) if (!size || all[i] !== all[size - 1]) all[size++] = all[i];
  return {space, edges: all.slice(0, size), used: new Uint8Array(size), places: new Float64Array(size), height: 0};
});
// Of each piece: its cut, and its edges there.
function findEdges(pieces, spaceOf) {
  const cutOf = new Map(spaceNumbers.map((space, i) => [space, i]));
  for (let i = 0; i < pieces.gfn.length; i++) {
    const which = pieces.cut[i] = cutOf.get(spaceOf(i));
    pieces.low[i] = before(cuts[which].edges, pieces.gfn[i]);
    pieces.high[i] = before(cuts[which].edges, pieces.gfn[i] + pieces.pages[i]);
  }
}
for (const name of ['cut', 'low', 'high']) lives[name] = new Int32Array(lives.from.length);
findEdges(lives, i => lives.space[i]);
findEdges(gaps, i => holes[gaps.hole[i]].space);
(function findUsed() {
  const depth = cuts.map(cut => new Int32Array(cut.edges.length + 1));
  for (let life = 0; life < lives.from.length; life++) {
    depth[lives.cut[life]][lives.low[life]]++;
    depth[lives.cut[life]][lives.high[life]]--;
  }
  cuts.forEach((cut, which) => {
    for (let i = 0, deep = 0; i < cut.edges.length; i++) cut.used[i] = (deep += depth[which][i]) > 0 ? 1 : 0;
  });
})();
// Give each stretch its height; with `wanted` lives, all others hardly any.
function raise(wanted) {
  cuts.forEach((cut, which) => {
    const touched = new Int32Array(cut.edges.length + 1);
    for (const life of wanted ?? []) {
      if (lives.cut[life] !== which) continue;
      touched[lives.low[life]]++;
      touched[lives.high[life]]--;
    }
    for (let i = 0, want = 0; i + 1 < cut.edges.length; i++) {
      want += touched[i];
      const shown = cut.used[i] ? 1 + Math.log2(cut.edges[i + 1] - cut.edges[i]) / 4 : FOLD_HEIGHT;
      cut.places[i + 1] = cut.places[i] + (wanted && !want ? UNWANTED_HEIGHT : shown);
    }
    cut.height = cut.edges.length ? cut.places[cut.edges.length - 1] : 0;
  });
}
raise(null);

// Words.
function words(number, what) {
  return `${number} ${what}${number === 1 ? '' : 's'}`;
}
function hex(pages) {
  return '0x' + (BigInt(pages) << BigInt(PAGE_SHIFT)).toString(16);
}
function size(pages) {
  for (const [unit, shift] of [['TiB', 28], ['GiB', 18], ['MiB', 8]]) {
    if (pages >= 2 ** shift && pages * 100 % 2 ** shift === 0) return `${Number((pages / 2 ** shift).toFixed(2))} ${unit}`;
  }
  return `${pages * 4} KiB`;
}
function frames(gfn, pages, space) {
  return `${space ? `as ${space}: ` : ''}[${hex(gfn)}, ${hex(gfn + pages)}) ${size(pages)}`;
}
function duration(ns) {
  for (const [unit, scale] of [['s', 1e9], ['ms', 1e6], ['µs', 1e3]]) {
    if (ns >= scale) {
      const value = ns / scale;
      return `${value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2)} ${unit}`;
    }
  }
  return `${ns.toFixed(0)} ns`;
}
function moment(ns) {
  return `${ns < 0 ? '−' : '+'}${duration(Math.abs(ns))}`;
}
function flagWords(flags) {
  const known = [[READONLY, 'read-only'], [LOG, 'log'], [GUEST_MEMFD, 'guest_memfd']];
  const found = known.filter(([bit]) => flags & bit).map(([, word]) => word);
  const rest = flags & ~7;
  return [...found, ...(rest ? ['0x' + (rest >>> 0).toString(16)] : [])].join(' ');
}
function slotName(space, slot) {
  if (slot === NO_NUMBER) slot = '?';
  return space ? `${space}:${slot}` : `${slot}`;
}
const isAssumed = life => lives.from[life] === ASSUMED;
function lineWords(indices) {
  const lines = [...new Set(indices.map(i => changes.line[i]))];
  const runs = [];
  for (const line of lines) {
    const last = runs[runs.length - 1];
    if (last && line === last[1] + 1) last[1] = line;
    else runs.push([line, line]);
  }
  return runs.map(([first, last]) => first === last ? `${first}` : `${first}-${last}`).join(', ');
}
function holeDuration(hole) {
  if (hole.seconds === null) return '?';
  return hole.from === hole.until || changes.line[hole.from] === changes.line[hole.until] ? 'one call' : duration(hole.seconds * 1e9);
}
