// Browsers refuse workers to pages that were opened from disk. Here the search's worker is a hidden frame instead, with
// the few things that it asks of a worker's scope: messages both ways, and scripts to import.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<!doctype html><title>search</title>";
      frame.onload = () => this.begin(frame.contentWindow, new URL(url, location.href).href);
      const attach = () => document.body.appendChild(frame);
      document.body ? attach() : addEventListener("DOMContentLoaded", attach);
    }

    begin(scope, url) {
      const load = (src) =>
        new Promise((resolve, reject) => {
          const script = scope.document.createElement("script");
          script.src = src;
          script.onload = resolve;
          script.onerror = reject;
          scope.document.head.appendChild(script);
        });
      scope.importScripts = (...urls) => urls.reduce((done, src) => done.then(() => load(src)), Promise.resolve());
      scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      load(url).then(() => {
        this.scope = scope;
        this.waiting.splice(0).forEach((data) => this.postMessage(data));
      });
    }

    postMessage(data) {
      if (this.scope) this.scope.dispatchEvent(new MessageEvent("message", { data }));
      else this.waiting.push(data);
    }

    terminate() {}
  };
}
