// Shows the page's living part anew, unless somebody reads or works in it. Without it the page reloads itself.
const live = document.getElementById('live'), note = document.getElementById('note');
setInterval(async () => {
  const busy = live.contains(document.activeElement) || live.querySelector('details[open]') || !getSelection().isCollapsed;
  if (document.hidden || busy) return;
  try {
    const answer = await fetch(location.href, { cache: 'no-store' });
    const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html').getElementById('live');
    live.replaceChildren(...fresh.childNodes);
    note.textContent = '';
  } catch {
    note.textContent = 'The daemon does not answer: what you see may be old.';
  }
}, 3000);
