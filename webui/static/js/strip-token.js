// The address that the terminal prints carries the key; once its cookie is set, the key leaves the address bar.
(() => {
  const url = new URL(location.href);
  if (url.searchParams.has("token")) {
    url.searchParams.delete("token");
    history.replaceState(history.state, "", url);
  }
})();
