// The page's state, and what keys, buttons, wheel and fingers do to it.

let current = 0;
const $ = id => document.getElementById(id);

let asked = 0;
function redraw() {
  if (!asked) asked = requestAnimationFrame(() => { asked = 0; draw(); });
}

function setView(from, until) {
  const whole = wholeWidth();
  const width = Math.min(Math.max(until - from, whole * 1e-7), whole);
  view.from = Math.min(Math.max(from, 0), whole - width);
  view.until = view.from + width;
  redraw();
}

function zoom(factor, at = (view.from + view.until) / 2) {
  setView(at - (at - view.from) * factor, at + (view.until - at) * factor);
}

function zoomStep() {
  if (!transactions[current]) return;
  const [from, until] = stepSpan(current);
  const margin = Math.max((until - from) * 0.35, wholeWidth() * 1e-6, view.scale === 'folded' ? 2 : 0);
  setView(from - margin, until + margin);
}

function select(which) {
  current = Math.min(Math.max(which, 0), Math.max(transactions.length - 1, 0));
  $('slider').value = current;
  $('slider').setAttribute('aria-valuetext', `transaction ${current + 1} of ${transactions.length}`);
  for (const row of document.querySelectorAll('#hole-table tbody tr')) {
    row.classList.toggle('selected', holes[row.sectionRowIndex].transaction === current);
  }
  showDetails();
  if (transactions[current]) {
    const [from, until] = stepSpan(current);
    const width = view.until - view.from;
    if (from < view.from || until > view.until) {
      if (until - from > width * 0.8) zoomStep();
      else setView((from + until - width) / 2, (from + until + width) / 2);
    }
  }
  redraw();
}

const withHole = [...new Set(holes.map(hole => hole.transaction))].sort((a, b) => a - b);
function goToHole(forward) {
  const found = forward ? withHole.find(each => each > current) : withHole.findLast(each => each < current);
  if (found !== undefined) select(found);
}

function toggleScale() {
  if (!axes.scaled) return;
  const middle = transactions[current] ? stepSpan(current) : null;
  view.scale = view.scale === 'folded' ? 'scaled' : 'folded';
  $('scale').setAttribute('aria-pressed', view.scale === 'scaled');
  setView(0, wholeWidth());
  if (middle === null) redraw();
}

function toggleFocus() {
  view.focus = !view.focus;
  $('focus').setAttribute('aria-pressed', view.focus);
  redraw();
}

const keys = {
  ArrowLeft: () => select(current - 1),
  ArrowRight: () => select(current + 1),
  Home: () => select(0),
  End: () => select(transactions.length - 1),
  n: () => goToHole(true),
  p: () => goToHole(false),
  '+': () => zoom(0.5),
  '=': () => zoom(0.5),
  '-': () => zoom(2),
  0: () => setView(0, wholeWidth()),
  z: zoomStep,
  t: toggleScale,
  f: toggleFocus,
  a: () => setView(view.from - (view.until - view.from) / 4, view.until - (view.until - view.from) / 4),
  d: () => setView(view.from + (view.until - view.from) / 4, view.until + (view.until - view.from) / 4),
};
addEventListener('keydown', event => {
  if (event.ctrlKey || event.altKey || event.metaKey || !Object.hasOwn(keys, event.key)) return;
  event.preventDefault();
  keys[event.key]();
});

const buttons = {
  'zoom-in': keys['+'], 'zoom-out': keys['-'], 'zoom-all': keys[0], 'zoom-step': zoomStep, scale: toggleScale,
  focus: toggleFocus, first: keys.Home, last: keys.End, previous: keys.ArrowLeft, next: keys.ArrowRight,
  'previous-hole': keys.p, 'next-hole': keys.n,
};
for (const id in buttons) $(id).addEventListener('click', buttons[id]);
$('slider').addEventListener('input', () => select(Number($('slider').value)));

// The pointer: hover tells, a click selects, a drag moves, the wheel (and two fingers) zoom.
const placeUnder = event => view.from + (chartX(event) - drawn.place.left) / drawn.unit;
function chartX(event) {
  const box = chart.getBoundingClientRect();
  return (event.clientX - box.left) * drawn.place.width / box.width;
}
function chartY(event) {
  const box = chart.getBoundingClientRect();
  return (event.clientY - box.top) * drawn.place.all / box.height;
}
function transactionAt(place) {
  let i = Math.min(Math.max(before(places(), place) - 1, 0), count - 1);
  if (i + 1 < count && places()[i + 2] - place < place - places()[i + 1]) i++;
  while (i > 0 && changes.transaction[i] < 0) i--;
  return Math.max(changes.transaction[i], 0);
}
function tell(event) {
  const x = chartX(event), y = chartY(event);
  const block = drawn.blocks.find(([, x0, x1, y0, y1]) => x >= x0 && x < x1 && y >= y0 && y < y1);
  const which = transactionAt(placeUnder(event));
  const step = transactions[which];
  const hole = step && step.holes.length && holes[step.holes[0]];
  const parts = [];
  if (block) {
    const life = block[0];
    const flags = flagWords(lives.flags[life]);
    parts.push(`slot ${slotName(lives.space[life], lives.slot[life])} ${frames(lives.gfn[life], lives.pages[life], 0)} → ${hex(lives.host[life])}${flags ? ' ' + flags : ''}, ${isAssumed(life) ? 'assumed from before the trace' : `line ${changes.line[lives.from[life]]}`}`);
  }
  if (step) parts.push(`nearest: transaction ${which + 1}${hole ? `, hole of ${holeDuration(hole)}, ${hole.verdict}` : ''}`);
  readout.textContent = parts.join(' · ') || '\u00a0';
}

const fingers = new Map();
let moved = 0;
chart.addEventListener('pointerdown', event => {
  fingers.set(event.pointerId, event.clientX);
  moved = 0;
});
addEventListener('pointermove', event => {
  if (!fingers.has(event.pointerId)) {
    if (event.target instanceof Element && chart.contains(event.target)) tell(event);
    return;
  }
  const was = fingers.get(event.pointerId);
  const by = event.clientX - was;
  moved += Math.abs(by);
  if (moved > 3 && fingers.size === 1) chart.setPointerCapture?.(event.pointerId);
  if (fingers.size === 2) {
    const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, x]) => x);
    const now = Math.abs(event.clientX - other);
    if (now > 5) zoom(Math.abs(was - other) / now);
  } else if (moved > 3) {
    const shift = by * drawn.place.width / chart.getBoundingClientRect().width / drawn.unit;
    setView(view.from - shift, view.until - shift);
  }
  fingers.set(event.pointerId, event.clientX);
});
for (const name of ['pointerup', 'pointercancel']) {
  addEventListener(name, event => {
    if (!fingers.delete(event.pointerId) || moved > 3 || name === 'pointercancel') return;
    if (count) select(transactionAt(placeUnder(event)));
  });
}
chart.addEventListener('wheel', event => {
  if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    const by = (event.deltaX || event.deltaY) / drawn.unit;
    setView(view.from + by, view.until + by);
  } else {
    zoom(Math.exp(Math.min(Math.max(event.deltaY, -200), 200) * 0.003), placeUnder(event));
  }
  event.preventDefault();
}, {passive: false});

function legend() {
  const box = $('legend');
  const shown = hosts.bySize.slice(0, 8);
  const entry = (classes, text) => make('span', {class: 'entry'}, make('i', {class: `swatch ${classes}`}), text);
  const entries = [
    entry('hole open', 'hole, open'), entry('hole unknown', 'hole, unknown'), entry('hole closed', 'hole, closed'),
    ...shown.map(piece => entry(`host${hosts[piece].colour}`, `host ${hex(hosts[piece].start)}, ${size(hosts[piece].end - hosts[piece].start)}`)),
    ...(hosts.length > shown.length ? [make('span', {class: 'entry'}, `and ${hosts.length - shown.length} more pieces of host memory`)] : []),
    entry('bundle', 'many slots, too small to tell apart: zoom'),
  ];
  if (lives.flags.some(flags => flags & READONLY)) entries.push(entry('ro', 'hatched: read-only'));
  if (data.lanes.length) {
    const known = {g: 'vCPU in the guest', r: 'in KVM_RUN, in the guest or not', k: 'served by KVM', u: 'outside'};
    const found = new Set(data.lanes.flatMap(lane => [...new Set(lane.where)]));
    for (const letter in known) if (found.has(letter)) entries.push(entry(`lane-${WHERE[letter]}`, known[letter]));
    entries.push(entry('lane-several', 'coming and going'), entry('lane-unknown', 'not known'));
  }
  if (changes.refused.length) entries.push(make('span', {class: 'entry'}, `× refused by KVM: ${changes.refused.length}`));
  box.replaceChildren(...entries);
  const notes = [];
  if (!data.timed) notes.push('No times in this trace: the picture goes by the order of changes.');
  const joined = data.lanes.reduce((sum, lane) => sum + lane.joined, 0);
  if (joined) notes.push(`${joined} short pieces of vCPU lanes, none of them near a hole, are drawn as coming and going.`);
  for (const note of notes) box.append(make('p', {class: 'note'}, note));
}

$('picture').hidden = $('step').hidden = false;
$('slider').max = Math.max(transactions.length - 1, 0);
if (!axes.scaled) $('scale').disabled = true;
for (const row of document.querySelectorAll('#hole-table tbody tr')) {
  row.tabIndex = 0;
  row.classList.add('go');
  const go = () => select(holes[row.sectionRowIndex].transaction);
  row.addEventListener('click', go);
  row.addEventListener('keydown', event => { if (event.key === 'Enter') go(); });
}
legend();
view.until = wholeWidth();
const longest = holes.reduce((best, hole) => !best || (hole.seconds ?? 0) > (best.seconds ?? 0) ? hole : best, null);
const worst = holes.find(hole => hole.verdict === 'open') ?? longest;
select(worst ? worst.transaction : 0);
draw();
addEventListener('resize', redraw);
