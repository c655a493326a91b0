// The list of sessions keeps itself up to date: every few seconds the list is fetched again, whole, as HTML.

const EVERY_MS = 3000;

async function refresh() {
  if (!document.hidden) {
    try {
      const answer = await fetch("/", { headers: { Accept: "text/html" } });
      if (answer.ok) swap(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch {
      // the server is gone for now: the next turn asks again
    }
  }
  setTimeout(refresh, EVERY_MS);
}

function swap(fresh) {
  const old = document.getElementById("sessions");
  const now = fresh.getElementById("sessions");
  if (!now || old.innerHTML === now.innerHTML) return;
  const focused = document.activeElement?.getAttribute("href");
  old.replaceWith(document.adoptNode(now));
  if (focused) document.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
}

setTimeout(refresh, EVERY_MS);
