// Shows the page's living part anew, unless somebody reads or works in it. Without it the page reloads itself.
const live = document.getElementById('live'), note = document.getElementById('note');
setInterval(async () => {
  const busy = live.contains(document.activeElement) || live.querySelector('details[open]') || !getSelection().isCollapsed;
  if (document.hidden || busy) return;
  try {
    const answer = await fetch(location.href, { cache: 'no-store' });
    // Its style has a nonce of its own, which the policy of this document refuses.
    const text = (await answer.text()).replace(/<style[^]*?<\/style>/, '');
    const fresh = new DOMParser().parseFromString(text, 'text/html').getElementById('live');
    live.replaceChildren(...fresh.childNodes);
    note.textContent = '';
  } catch {
    note.textContent = 'The daemon does not answer: what you see may be old.';
  }
}, 3000);
