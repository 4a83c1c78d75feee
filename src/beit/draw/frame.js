// What surrounds the views of a page: search and filters, the panel of one item, and the address.

/**
 * Show what the address names: a view, or one item in the panel. Returns { show, follow }.
 *
 * `state` is { view, open, scrolled }: the name of the view, what `parse()` returned for the item in
 * the panel (else null), and how far each view is scrolled. `headings` are the views in words; the
 * view `unsearched` has no search, which / then begins in the view `searched`.
 *
 * `parse()` returns { kind, item, ... } of the address; without an item, `kind` is a view. Of what it
 * returned, `name` is the title, `subject` and `content` are the panel's elements; `order(kind)` are
 * the items of a kind. `refresh()` follows the controls, `shown(view)` a change of the view;
 * `choose(open)` marks the open item (null: none); `enter()` focuses the view, and `leave(closed)`
 * after the panel was closed.
 */
function explore({ state, controls, headings, unsearched, searched, parse, refresh, shown, name, subject, content, order, choose, enter, leave }) {
  const title = document.title;
  const wide = window.matchMedia('(min-width: 62.01rem)');

  function show(view) {
    if (view !== state.view) {
      state.scrolled[state.view] = window.scrollY;
      state.view = view;
    }
    byId('tools').hidden = view === unsearched;
    byId('heading').textContent = headings[view];
    for (const link of byId('views').children) {
      if (link.dataset.view === view) link.setAttribute('aria-current', 'page');
      else link.removeAttribute('aria-current');
    }
    shown(view);
  }

  function follow() {
    const address = parse();
    if (address.item) {
      open(address);
      return;
    }
    const changed = address.kind !== state.view;
    show(address.kind);
    if (changed) window.scrollTo({ top: state.scrolled[address.kind], behavior: 'instant' });
    close();
  }

  function open(address) {
    state.open = address;
    byId('subject').replaceChildren(...subject(address));
    byId('content').replaceChildren(...content(address));
    byId('panel').hidden = false;
    byId('panel').scrollTop = 0;
    document.body.classList.add('open');
    document.title = `${name(address)} – ${title}`;
    byId('previous').disabled = !beside(-1);
    byId('next').disabled = !beside(1);
    choose(address);
    cover();
    byId('subject').focus({ preventScroll: true });
  }

  function close() {
    if (!state.open) return;
    const closed = state.open;
    state.open = null;
    byId('panel').hidden = true;
    byId('content').replaceChildren();
    document.body.classList.remove('open');
    document.title = title;
    cover();
    choose(null);
    leave(closed);
  }

  /** In a narrow window the panel covers the page, which is then inert. */
  function cover() {
    byId('page').inert = Boolean(state.open) && !wide.matches;
  }

  /** Return the item before (-1) or after (1) the open one. */
  function beside(by) {
    const items = order(state.open.kind);
    const place = items.indexOf(state.open.item);
    return place < 0 ? undefined : items[place + by];
  }

  function step(by) {
    const next = beside(by);
    if (next) location.hash = `#${state.open.kind}=${next.index}`;
  }

  for (const control of Object.values(controls)) control.addEventListener('input', refresh);
  byId('tools').addEventListener('submit', (event) => event.preventDefault());
  byId('clear').addEventListener('click', () => { byId('tools').reset(); refresh(); controls.search.focus(); });
  byId('fold').addEventListener('click', () => byId('fold').setAttribute('aria-expanded', byId('filters').classList.toggle('open')));
  byId('skip').addEventListener('click', (event) => { event.preventDefault(); enter(); });
  byId('close').addEventListener('click', () => { location.hash = `#${state.view}`; });
  byId('previous').addEventListener('click', () => step(-1));
  byId('next').addEventListener('click', () => step(1));
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest('input, select, textarea');
    if (event.key === 'Escape' && state.open) location.hash = `#${state.view}`;
    if (event.key === '/' && !typing && !byId('page').inert) {
      event.preventDefault();
      if (state.view === unsearched) show(searched);
      controls.search.focus();
      controls.search.select();
    }
  });
  window.addEventListener('hashchange', follow);
  wide.addEventListener('change', cover);
  return { show, follow };
}
