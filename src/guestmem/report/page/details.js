// One transaction in words: its changes, its holes with verdict and evidence, what would have to be atomic, and the
// memory before and after. Everything is set as text.

const details = document.getElementById('details');
const ROWS = 100;
const KIND = {c: 'create', d: 'delete', m: 'move', f: 'flags', n: 'nothing', r: 'refused'};

function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  for (const child of children) made.append(child);
  return made;
}

function table(id, headings, rows) {
  const body = make('tbody');
  const shown = make('table', {id}, make('thead', {}, make('tr', {}, ...headings.map(each => make('th', {}, each)))), body);
  const box = make('div', {class: 'scroll'}, shown);
  let done = 0;
  const more = make('button', {class: 'more'});
  const add = () => {
    body.append(...rows.slice(done, done += ROWS).map(row => {
      const line = make('tr', row.classes ? {class: row.classes} : {}, ...row.cells.map(cell => make('td', {}, cell)));
      if (row.go) {
        line.classList.add('go');
        line.addEventListener('click', row.go);
      }
      return line;
    }));
    more.hidden = done >= rows.length;
    more.textContent = `${rows.length - done} more`;
  };
  more.addEventListener('click', add);
  add();
  if (!more.hidden) box.append(more);
  return box;
}

function changeRow(i, setOf) {
  const kind = changes.kind[i];
  const old = replaced[i], now = begun[i];
  const at = now >= 0 ? now : old;
  const set = setOf.get(i);
  const where = at < 0
    ? frames(changes.gfn[i], changes.pages[i], changes.space[i])
    : kind === 'm' ? `${frames(lives.gfn[old], lives.pages[old], 0)} → ${hex(changes.gfn[i])}` : frames(lives.gfn[at], lives.pages[at], lives.space[at]);
  const flags = at < 0 ? changes.flags[i] : lives.flags[at];
  const was = kind === 'f' ? `${flagWords(lives.flags[old]) || 'none'} → ` : '';
  const word = KIND[kind] + (implied.has(i) ? ' (implied)' : '') + (refusal.has(i) ? `: ${refusal.get(i)}` : '');
  return {
    classes: `kind-${kind}`,
    cells: [
      `${changes.line[i]}`,
      data.timed ? moment(changes.ns[i]) : '',
      word,
      slotName(changes.space[i], changes.slot[i]) + (old >= 0 && isAssumed(old) ? ' (assumed before)' : ''),
      where,
      at < 0 ? '' : hex(lives.host[at]),
      was + flagWords(flags) + (kind === 'f' && !flags ? 'none' : ''),
      set === undefined ? '' : `set ${set + 1}`,
    ],
  };
}

// Slots that overlap what the transaction touches, as they were before change `at`.
function slotsAt(at, spans, space) {
  const found = [];
  for (let life = 0; life < lives.from.length; life++) {
    if (lives.space[life] !== space || lives.from[life] >= at || lives.until[life] < at) continue;
    const start = lives.gfn[life], end = start + lives.pages[life];
    let low = 0, high = spans.length; // spans are sorted and apart
    while (low < high) {
      const middle = (low + high) >> 1;
      if (spans[middle][1] <= start) low = middle + 1;
      else high = middle;
    }
    if (low < spans.length && spans[low][0] < end) found.push(life);
  }
  return found.sort((a, b) => lives.gfn[a] - lives.gfn[b]);
}

function touchedSpans(which) {
  const spans = [...touchedLives(which)].map(life => [lives.gfn[life], lives.gfn[life] + lives.pages[life]]).sort((a, b) => a[0] - b[0]);
  const joined = [];
  for (const [start, end] of spans) {
    const last = joined[joined.length - 1];
    if (last && start <= last[1]) last[1] = Math.max(last[1], end);
    else joined.push([start, end]);
  }
  return joined;
}

function slotTable(id, found, others) {
  const same = new Set(others);
  return table(id, ['slot', 'frames', 'host', 'flags'], found.map(life => ({
    classes: `${same.has(life) ? '' : 'changed'}`,
    cells: [
      swatch(life),
      frames(lives.gfn[life], lives.pages[life], lives.space[life]),
      hex(lives.host[life]),
      flagWords(lives.flags[life]),
    ],
  })));
}

function swatch(life) {
  return make('span', {}, make('i', {class: `swatch host${hosts[lives.piece[life]].colour}`}), slotName(lives.space[life], lives.slot[life]) + (isAssumed(life) ? ' (assumed)' : ''));
}

function showDetails() {
  const step = transactions[current];
  if (!step) return details.replaceChildren(make('p', {}, 'No change was applied.'));
  const mine = step.changes, first = mine[0], last = mine[mine.length - 1];
  const space = changes.space[first];
  document.getElementById('step-title').textContent = `Transaction ${current + 1} of ${transactions.length}`;
  const parts = [];
  const lasted = data.timed ? `, ${moment(changes.ns[first])}, ${duration(changes.ns[last] - changes.ns[first])} long` : '';
  const thread = changes.thread[first] === null ? '' : `, thread ${changes.thread[first]}`;
  const lines = changes.line[first] === changes.line[last] ? `line ${changes.line[first]}` : `lines ${changes.line[first]}-${changes.line[last]}`;
  parts.push(make('p', {id: 'step-summary'}, `${lines}${thread}${lasted}: ${words(mine.length, 'change')}${space ? `, address space ${space}` : ''}`));
  const setOf = new Map();
  const sets = [];
  for (const which of step.holes) {
    const hole = holes[which];
    const name = make('b', {class: 'word'}, hole.verdict);
    const text = make('p', {class: `hole-words ${hole.verdict}`}, name, ` ${hole.reason}. Missing for ${holeDuration(hole)}; host memory behind it afterwards: ${hole.same}.`);
    parts.push(text, make('p', {id: 'rule'}, `It rests on: ${hole.rule}.`));
    for (const set of hole.sets) {
      set.changes.forEach(i => setOf.set(i, sets.length));
      sets.push(set);
    }
  }
  if (!step.holes.length) parts.push(make('p', {class: 'hole-words no-hole'}, 'No hole: no frame went and came back.'));
  if (sets.length) {
    parts.push(make('h3', {}, 'Would have to be atomic'));
    parts.push(make('ul', {id: 'sets'}, ...sets.map((set, i) => make('li', {},
      sets.length > 1 ? `set ${i + 1}, ` : '', `lines ${lineWords(set.changes)}: ${set.primitives.join(', ')}`))));
  }
  parts.push(make('h3', {}, 'Changes'));
  parts.push(table('change-table', ['line', 'time', 'change', 'slot', 'frames', 'host', 'flags', 'set'], mine.map(i => changeRow(i, setOf))));
  const spans = touchedSpans(current);
  const old = slotsAt(first, spans, space), now = slotsAt(last + 1, spans, space);
  parts.push(make('div', {class: 'beside'},
    make('div', {}, make('h3', {}, 'Memory before'), old.length ? slotTable('before-table', old, now) : make('p', {}, 'none there')),
    make('div', {}, make('h3', {}, 'and after'), now.length ? slotTable('after-table', now, old) : make('p', {}, 'none there'))));
  details.replaceChildren(...parts);
}
